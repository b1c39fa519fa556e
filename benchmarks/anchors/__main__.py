"""What each term of the loss buys a network that reads image and caption freely.

    python -m benchmarks.anchors --datapack DIR [--features var/features] [--part NAME ...]

The head of the offline backbone sees agreements alone, which compare across images from the start; the ablation of
`benchmarks.evidence` therefore says little of the cross-image anchors. Here the same terms train two networks that
may read anything of image and caption: a free head over the same frozen features, cross-validated by image on
Flickr8k-Expert, and a small BLIP trained from nothing, on one split, as a test of its path. Writes `result.json`,
`result.md` and the tables of `docs/anchors.md`; of a part that does not run now, the figures of its last run stay.
Exits with 2 where the data pack is not there.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.anchors import tables
from benchmarks.anchors.arms import (
    ALL,
    ARMS,
    BLIP,
    BLIP_STAGE_0,
    FEW,
    FREE_CRAWL,
    FREE_STAGE_0,
    measure_blip,
    measure_free,
)
from benchmarks.evidence.pack import load, missing
from compalign_dagster.reward.offline_encoders import remember_in

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "anchors.md"
MARKER = "<!-- below: written by python -m benchmarks.anchors -->"
PACKAGES = ("torch", "transformers", "numpy")
PARTS = ("scratch", "stage-0", "blip")  # the free head from scratch and after stage 0, and a BLIP


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; the exit code."""
    options = _options(arguments)
    lacking = missing(options.datapack)
    if lacking:
        print(f"data pack {options.datapack}: no {lacking[0]}. Give its root folder with --datapack.", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    remember_in(options.features)
    measured = [_measured(part, options) for part in PARTS if part in (options.part or PARTS)]
    print(write(measured, options.out))
    return 0


def write(measured: Sequence[dict[str, Any]], out: Path) -> str:
    """Put these runs in the place of those of the same parts, and write all that is made of them; the tables."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "result.json"
    known = json.loads(file.read_text())["runs"] if file.is_file() else []
    by_part = {run["part"]: run for run in (*known, *measured)}
    runs = [by_part[part] for part in PARTS if part in by_part]
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "runs": runs,
        "ratios": {f"{figure}_{run['part']}_all_terms_vs_no_anchors": _ratio(run["arms"], figure)
                   for run in runs for figure in ("cross_image_auc", "mean_preference_accuracy")},
    }  # fmt: skip
    file.write_text(json.dumps(result, indent=1) + "\n")
    written = tables.page(runs)
    (out / "result.md").write_text(written)
    if out == HERE:
        prose, marker, _ = PAGE.read_text().partition(MARKER)
        PAGE.write_text(f"{prose}{marker}\n\n{written}")
    return written


def _ratio(arms: Mapping[str, Any], figure: str) -> dict[str, Any]:
    value = round(arms[ALL][figure]["value"] / arms["no anchors"][figure]["value"], 4)
    return {"median": value, "min": value, "max": value, "n": 1, "unit": f"{figure} ratio", "better": "higher"}


def _measured(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The run of a part."""
    with tempfile.TemporaryDirectory() as folder:
        work, model = Path(folder), Path(folder, "model")
        model.mkdir()
        crawl = options.train or (None if part == "blip" else FREE_CRAWL)
        pack = load(options.datapack, work, judged=options.judged, train=crawl, seed=options.seed)
        if part == "blip":
            run = measure_blip(pack, model, seed=options.seed, changed=BLIP | options.config, stage_0=BLIP_STAGE_0)
        else:
            first = part == "scratch"
            arms, stage_0 = (FEW, None) if first else (ARMS, FREE_STAGE_0)
            given = {"folds": options.folds, "seed": options.seed, "changed": options.config}
            run = measure_free(pack, model, arms, stage_0=stage_0, **given)
    return {"part": part, "seed": options.seed, **run}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anchors", description=__doc__.splitlines()[0])
    parser.add_argument("--datapack", type=Path, required=True, help="root folder of the data pack")
    parser.add_argument("--features", type=Path, default=Path("var/features"), help="where frozen features are kept")
    parser.add_argument("--part", action="append", choices=PARTS, help="one of them alone; all unless given")
    parser.add_argument("--folds", type=int, default=3, help="of the free head")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--config", type=json.loads, default={}, help="training settings of every arm, a JSON object")
    parser.add_argument("--judged", type=int, help="a slice: so many judged images of flickr8k")
    parser.add_argument("--train", type=int, help="a slice: so many images of the crawl")
    parser.add_argument("--out", type=Path, default=HERE, help="another folder leaves the documentation as it is")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
