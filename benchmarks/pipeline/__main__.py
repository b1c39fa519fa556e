"""Collect the figures of finished runs into `result.json`, `result.md` and the tables of `docs/results.md`.

    compalign demo && python -m benchmarks.pipeline var/sample var/photos

Reads each home's store; measures nothing itself. Ratios are recall at 1 (text to image) of the encoder
trained on the reward-filtered subset, against the same encoder trained on each other set, in one run.
"""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compalign_dagster import latest
from compalign_dagster.store import LocalStore

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results.md"
MARKER = "<!-- below: written by python -m benchmarks.pipeline -->"
PACKAGES = ("dagster", "torch", "transformers", "polars", "duckdb", "great-expectations")
WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}


def main(homes: list[str]) -> None:
    """Write both files from the stores of these homes."""
    runs = {Path(home).name: figures(Path(home)) for home in homes}
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "runs": [{"profile": name, **run} for name, run in runs.items()],
        "ratios": {
            f"{name}_reward_vs_{rival}": ratio(run["downstream"]["arms"], rival)
            for name, run in runs.items()
            for rival in run["downstream"]["arms"]
            if rival != "reward"
        },
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    tables = "\n".join(line for name, run in runs.items() for line in page(name, run))
    (HERE / "result.md").write_text(tables)
    prose, marker, _ = RESULTS.read_text().partition(MARKER)
    RESULTS.write_text(f"{prose}{marker}\n\n{tables}")


def figures(home: Path) -> dict[str, Any]:
    """The figures of one home's newest artifacts."""
    store = LocalStore(home / "store")
    report = latest.require(store, "eval_report").facts["report"]
    dataset = latest.require(store, "filtered_dataset").facts
    model = latest.require(store, "reward_model").facts
    annotations = latest.require(store, "coco_hf_annotations").facts
    return {
        "pairs": dataset["pairs"],
        "kept": dataset["kept"],
        "annotations": {name: annotations[name] for name in ("images", "comparisons", "labelers")},
        "cross_image_auc": model["metrics"]["cross_image_auc"],
        "agreement": report["agreement"],
        "ceiling": report["ceiling"],
        "downstream": report["downstream"],
    }


def ratio(arms: dict[str, Any], rival: str) -> dict[str, Any]:
    """Recall at 1 of the reward arm over a rival's."""
    value = arms["reward"]["text_to_image"]["r1"]["value"] / arms[rival]["text_to_image"]["r1"]["value"]
    value = round(value, 3)
    return {"median": value, "min": value, "max": value, "n": 1, "unit": "recall at 1 ratio", "better": "higher"}


def page(name: str, run: dict[str, Any]) -> list[str]:
    """Tables of one run."""
    judged = run["annotations"]
    lines = [
        f"## {name}",
        "",
        f"{run['kept']:,} of {run['pairs']:,} pairs kept; {judged['images']:,} judged images, "
        f"{judged['comparisons']:,} comparisons, {judged['labelers']} labelers.",
        "",
        "| scorer | agrees with people | 95 % interval | n |",
        "| --- | ---: | --- | ---: |",
    ]
    rows = {scorer: entry["preference_accuracy"] for scorer, entry in run["agreement"].items()}
    for scorer, figure in {**rows, "another labeler": run["ceiling"]}.items():
        if figure and figure.get("value") is not None:
            lines.append(f"| {scorer} | {percent(figure)} | {interval(figure)} | {figure['n']:,} |")
    across = run["cross_image_auc"]
    lines += [
        "",
        f"Matched above mismatched pairs, pooled over held-out images (AUC): {across['value']:.3f}, "
        f"95 % interval {across['low']:.3f} to {across['high']:.3f}, n = {across['n']:,}.",
        "",
        "| trained on | pairs | " + " | ".join(f"R@{k} {way}" for way in WAYS.values() for k in (1, 5, 10)) + " |",
        "| --- | ---: |" + " ---: |" * 6,
    ]
    for arm, entry in run["downstream"]["arms"].items():
        found = [entry[way][f"r{k}"] for way in WAYS for k in (1, 5, 10)]
        cells = [f"{percent(figure)} ({interval(figure)})" for figure in found]
        lines.append(f"| {arm} | {entry['pairs']:,} | {' | '.join(cells)} |")
    facts = run["downstream"]
    lines += [
        "",
        f"Each training: {facts['steps']} steps of {facts['batch']} pairs, {facts['seeds']} seeds; "
        f"{facts['test_images']:,} test images, {facts['test_captions']:,} captions.",
        "",
    ]
    return lines


def percent(figure: dict[str, Any]) -> str:
    """A share as a percentage."""
    return f"{100 * figure['value']:.1f} %"


def interval(figure: dict[str, Any]) -> str:
    """The interval of a share, in percent."""
    return f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}"


if __name__ == "__main__":
    main(sys.argv[1:] or ["var/sample"])
