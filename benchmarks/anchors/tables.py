"""The figures of `result.json` as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.anchors.arms import ALL
from benchmarks.evidence.tables import both, count, lead

_LEAD = f"minus {ALL}"
_WITHIN = {"tau_c": "tau-c x 100", "mean_preference_accuracy": "pairwise %"}
_ACROSS = {
    "cross_image_auc": "AUC own against other",
    "own_left": "left across images %",
    "human_auc": "AUC yes/no",
}


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """All tables of all runs, in their order."""
    parts = []
    for run in runs:
        parts += [f"## {run['network']}, {run['start']}", _setting(run)]
        parts += ["Within images:", _table(run["arms"], _WITHIN), "Across images:", _table(run["arms"], _ACROSS)]
        if "curves" in run:
            parts += ["Share of comparisons in which it agrees with people, and the comparisons' loss, on the "
                      "validation images:", _curves(run["curves"])]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _setting(run: Mapping[str, Any]) -> str:
    split = f"{run['folds']} folds by image" if run["folds"] > 1 else "one split by image"
    first = next(iter(run["arms"].values()))
    before = ""
    if run["stage_0"]:
        steps = f"{run['stage_0']['pretrain_steps']} steps of {run['stage_0']['pretrain_batch']} pairs"
        before = f", after {steps} on {run['crawl_images']:,} crawl images"
    ratings, pairs = count(first["tau_c"]), count(first["mean_preference_accuracy"])
    return (
        f"{split.capitalize()}: {run['train_images']} images to learn from and to validate on, {run['images']} scored "
        f"by a model that never saw them{before}; {ratings} ratings, {pairs} pairs. "
        f"{sum(run['minutes'].values()):.0f} minutes."
    )


def _table(arms: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    names = [name for title in columns.values() for name in (title, "against all terms")]
    lines = [f"| terms | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for arm, given in arms.items():
        cells = [cell for name in columns for cell in (both(given[name]), lead(given.get(_LEAD, {}).get(name)))]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _curves(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [f"| step | {' | '.join(curves)} |", f"| ---: |{' ---: |' * len(curves)}"]
    for entries in zip(*curves.values(), strict=True):
        cells = [f"{100 * entry['accuracy']:.1f}, {entry['preference']:.3f}" for entry in entries]
        lines.append(f"| {entries[0]['step']} | {' | '.join(cells)} |")
    return "\n".join(lines)
