"""How far rewards agree with people on real judgements, beside every score without human labels.

    python -m benchmarks.evidence --datapack DIR [--backbone offline] [--features var/features]

Five folds by image over every judged image of the data pack; each is scored by models that never saw it. The
crawl is the clean train photos, of which none is judged. The judgements of Flickr8k-Expert (captions written for
the image itself left out) train the reward; one more model learns from all sources. Writes `result.json`,
`result.md` and the tables of `docs/evidence.md`. Exits with 2 where the data pack is not there.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import tables
from benchmarks.evidence.contrastive import contrastive_cosine
from benchmarks.evidence.pack import LABELERS, Pack, load, missing, of_source
from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.evaluation.crossval import OutOfFold, out_of_fold
from compalign_dagster.evaluation.evidence import FIGURES, Judged, evidence_from, near_misses, scorer_figures
from compalign_dagster.evaluation.held_out import HeldOut
from compalign_dagster.reward.config import reward_config
from compalign_dagster.statistics import Bootstrap, Sampled

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "evidence.md"
MARKER = "<!-- below: written by python -m benchmarks.evidence -->"
PACKAGES = ("torch", "transformers", "numpy")
CONTRASTIVE = "contrastive cosine"
REWARD, ALL = "reward", "reward, all sources"
TRAINED_ON = ("expert", "composite", "context", "thumb", "cxc", "vsr", "sugarcrepe")  # by the model of all sources
ABLATIONS: dict[str, dict[str, float]] = {
    "reward, no anchors": {"anchor_weight": 0},
    "reward, no ratings": {"rating_weight": 0},
    "reward, no criteria": {"criteria_weight": 0},
    "reward, no comparisons": {"preference_weight": 0},
    "reward, comparisons alone": {"anchor_weight": 0, "rating_weight": 0, "criteria_weight": 0},
}
FREE = ("cosine", "itm", "label_free")  # scores of the backbone without human labels
OTHERS = {  # source -> what of it is looked at: the figure, and the criteria behind it
    "crowd": {"human_auc": CRITERIA, "tau_c": CRITERIA},
    "composite": {"tau_c": CRITERIA, "preference_accuracy": CRITERIA},
    "context": {
        "preference_accuracy": CRITERIA,
        "tau_c": ("completeness", "vividness", "context"),
    },
    "thumb": {"tau_c": ("accuracy", "completeness"), "preference_accuracy": CRITERIA},
    "cxc": {"tau_c": CRITERIA},
    "vsr": {"human_auc": CRITERIA},
    "sugarcrepe": {"preference_accuracy": CRITERIA},
}

log = logging.getLogger("benchmarks.evidence")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; the exit code."""
    options = _options(arguments)
    lacking = missing(options.datapack)
    if lacking:
        print(f"data pack {options.datapack}: no {lacking[0]}. Give its root folder with --datapack.", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.backbone == "offline":
        from compalign_dagster.reward.offline_encoders import remember_in

        remember_in(options.features)
    with tempfile.TemporaryDirectory() as work:
        pack = load(options.datapack, Path(work), judged=options.judged, train=options.train, seed=options.seed)
        settings = {**options.config, "backbone": options.backbone, "seed": options.seed}
        result = measure(pack, settings, folds=options.folds, ablations=ABLATIONS if options.ablations else {})
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    written = tables.page(result)
    (out / "result.md").write_text(written)
    if out == HERE and options.ablations:
        prose, marker, _ = PAGE.read_text().partition(MARKER)
        PAGE.write_text(f"{prose}{marker}\n\n{written}")
    print(written)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("--datapack", type=Path, required=True, help="root folder of the data pack")
    parser.add_argument("--backbone", default="offline")
    parser.add_argument("--features", type=Path, default=Path("var/features"), help="where frozen features are kept")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--config", type=json.loads, default={}, help="training settings of every arm, a JSON object")
    parser.add_argument("--no-ablations", dest="ablations", action="store_false", help="the two whole rewards alone")
    parser.add_argument("--judged", type=int, help="a slice: so many judged images of flickr8k")
    parser.add_argument("--train", type=int, help="a slice: so many images of the crawl")
    parser.add_argument("--out", type=Path, default=HERE, help="another folder leaves the documentation as it is")
    return parser.parse_args(arguments)


def measure(
    pack: Pack,
    settings: Mapping[str, Any],
    *,
    folds: int,
    ablations: Mapping[str, Mapping[str, float]] = ABLATIONS,
) -> dict[str, Any]:
    """Train and score every arm, and say all figures."""
    started, seed = time.monotonic(), settings["seed"]
    expert = of_source(pack.data, ["expert"])
    arms: dict[str, OutOfFold] = {}
    minutes: dict[str, float] = {}
    for name, changed in {REWARD: {}, **ablations, ALL: {}}.items():
        begun = time.monotonic()
        config = reward_config({**settings, **changed})
        learned = of_source(pack.data, TRAINED_ON) if name == ALL else expert
        arms[name] = out_of_fold(config, learned, folds=folds, matched=pack.own_captions, scored=pack.data)
        minutes[name] = round((time.monotonic() - begun) / 60, 2)
        log.info("%s: %.1f minutes", name, minutes[name])
    held = _one_table(arms, pack, seed)
    names = [name for name in (CONTRASTIVE, *FREE, *arms, "caption_length", "text_only") if _usable(held, name)]
    free = _best_free(names)
    log.info("best score without human labels: %s", free)
    runs = [
        {"set": "expert", **_compare(held, pack, "expert", names, {CONTRASTIVE, free}, seed=seed)},
        *_other_sets(held, pack, names, free, seed),
        {"set": "near misses", **_near_misses(held, expert.images["image_id"].to_pylist(), names, free, seed)},
    ]
    flickr = held.only(set(expert.images["image_id"].to_pylist()))
    chances = arms[REWARD].probabilities[held.where(lambda row: held.images[row.image] in set(flickr.images))]
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "setting": {"backbone": settings["backbone"], "folds": folds, "seed": seed,
                    "config": dict(settings), "crawl_pairs": pack.data.crawl.num_rows,
                    "judged_images": len(flickr.images), "best_without_labels": free},
        "runs": runs,
        "evidence": evidence_from(flickr, expert, chances, seed=seed),
        "minutes": {"by_arm": minutes, "all": round((time.monotonic() - started) / 60, 2)},
        "ratios": _ratios(runs[0]["scorers"], free),
    }  # fmt: skip


def _one_table(arms: dict[str, OutOfFold], pack: Pack, seed: int) -> HeldOut:
    """The rows that all arms scored, with a column for each arm's reward and criterion heads."""
    held = arms[REWARD].held
    columns: dict[str, np.ndarray] = {}
    for name, arm in arms.items():
        assert arm.held.rows == held.rows, f"{name} scored other rows"
        columns[name] = arm.held.scores["reward"]
    for criterion in CRITERIA:
        columns[f"{ALL}: {criterion}"] = arms[ALL].held.scores[criterion]
    columns[CONTRASTIVE] = contrastive_cosine(pack.data, held, seed=seed)
    return held.with_scores(columns)


def _usable(held: HeldOut, name: str) -> bool:
    return bool(np.isfinite(held.scores[name][held.kind("own")]).all())


def _best_free(names: Sequence[str]) -> str:
    """The backbone's own score without labels: `label_free` where it has one."""
    usable = [name for name in FREE if name in names]
    return "label_free" if "label_free" in usable else usable[0] if usable else CONTRASTIVE


def _compare(
    held: HeldOut,
    pack: Pack,
    source: str,
    names: Sequence[str],
    references: set[str],
    *,
    criteria: Sequence[str] = CRITERIA,
    wanted: Sequence[str] = FIGURES,
    seed: int,
) -> dict[str, Any]:
    """Figures of every scorer on one source, and its paired lead over the references."""
    data = of_source(pack.data, [source])
    part = held.only(set(data.images["image_id"].to_pylist()))
    judged = Judged(_judged_only(part, data), data, criteria)
    draws = Bootstrap(len(part.images), seed=seed)
    figures = {name: scorer_figures(judged.held.scores[name], judged, draws, wanted) for name in names}
    return {"images": len(part.images), "scorers": _leads(figures, references)}


def _judged_only(held: HeldOut, data: Any) -> HeldOut:
    """Without the judged captions of other sources."""
    places = set(zip(data.captions["image_id"].to_pylist(), data.captions["caption_id"].to_pylist(), strict=True))
    return held.of_rows(held.where(lambda row: row.kind != "own" or (held.images[row.image], row.caption_id) in places))


def _leads(figures: dict[str, dict[str, Sampled]], references: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, given in figures.items():
        found[name] = {figure: value.as_dict() for figure, value in given.items()}
        for reference in sorted(references & figures.keys() - {name}):
            found[name][f"minus {reference}"] = {
                figure: value.minus(figures[reference][figure]).as_dict() for figure, value in given.items()
            }
    return found


def _other_sets(held: HeldOut, pack: Pack, names: Sequence[str], free: str, seed: int) -> list[dict[str, Any]]:
    """Each other source, once for all its answers and once for each criterion that has a row of its own."""
    found = []
    there = {*pack.data.ranks["labeler"].to_pylist(), *pack.data.comparisons["labeler"].to_pylist()}
    for source, looked_at in OTHERS.items():
        if not any(labeler.startswith(LABELERS.get(source, source)) for labeler in there):
            continue
        for criteria in sorted(
            {(criterion,) for given in looked_at.values() if given != CRITERIA for criterion in given}
        ):
            wanted = [*names, f"{ALL}: {criteria[0]}"]
            figures = _compare(held, pack, source, wanted, {free}, criteria=criteria, wanted=["tau_c"], seed=seed)
            found.append({"set": source, "criterion": criteria[0], "figures": ["tau_c"], **figures})
        whole = [figure for figure, given in looked_at.items() if given == CRITERIA]
        figures = _compare(held, pack, source, names, {free}, wanted=whole, seed=seed)
        found.append({"set": source, "figures": whole, **figures})
    return found


def _near_misses(held: HeldOut, images: Sequence[str], names: Sequence[str], free: str, seed: int) -> dict[str, Any]:
    """A caption written for the image against itself with one word changed."""
    part = held.only(set(images))
    draws = Bootstrap(len(part.images), seed=seed)
    figures = {name: {"preference_accuracy": near_misses(part, part.scores[name], draws)} for name in names}
    return {"figures": ["preference_accuracy"], "images": len(part.images), "scorers": _leads(figures, {free})}


def _ratios(scorers: dict[str, Any], free: str) -> dict[str, Any]:
    found = {}
    for rival in (CONTRASTIVE, free):
        for figure in ("tau_c", "mean_preference_accuracy"):
            ours, theirs = scorers[REWARD][figure]["value"], scorers[rival][figure]["value"]
            if ours and theirs:
                value = round(ours / theirs, 4)
                found[f"{figure}_reward_vs_{rival.replace(' ', '_')}"] = {
                    "median": value, "min": value, "max": value, "n": 1, "unit": f"{figure} ratio", "better": "higher",
                }  # fmt: skip
    return found


if __name__ == "__main__":
    sys.exit(main())
