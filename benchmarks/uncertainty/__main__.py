"""How sure the reward says it is, how sure it should be, and whether that helps to choose what to label.

    python -m benchmarks.uncertainty --datapack DIR [--features var/features]

The offline backbone on the judgements of Flickr8k-Expert, five folds by image. The crawl holds no judged photo, so
that one memory of it serves all folds; heads are then trained some fifty times on looked-up agreements. Writes
`result.json`, `result.md` and the tables of `docs/uncertainty.md`. Exits with 2 where the data pack is not there.
"""

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.pack import load, missing, of_source
from benchmarks.uncertainty import curves, measure, tables
from benchmarks.uncertainty.heads import Table, Trainer, learn_table
from compalign_dagster.evaluation.crossval import fold_tables
from compalign_dagster.reward.config import RewardConfig, reward_config
from compalign_dagster.reward.data import SPLITS, JudgedImage, TrainingData, judged_images
from compalign_dagster.statistics import Bootstrap

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "uncertainty.md"
MARKER = "<!-- below: written by python -m benchmarks.uncertainty -->"
BUDGETS = (25, 50, 100, 200)  # questions: two captions of an image, answered by all of its labelers

log = logging.getLogger("benchmarks.uncertainty")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; the exit code."""
    options = _options(arguments)
    lacking = missing(options.datapack)
    if lacking:
        print(f"data pack {options.datapack}: no {lacking[0]}. Give its root folder with --datapack.", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("compalign_dagster").setLevel(logging.WARNING)
    from compalign_dagster.reward.offline_encoders import remember_in

    remember_in(options.features)
    started = time.monotonic()
    config = reward_config({"backbone": "offline", "seed": options.seed, "threads": 1})
    with tempfile.TemporaryDirectory() as work:
        pack = load(options.datapack, Path(work), judged=options.judged, train=options.train, seed=options.seed)
        data = of_source(pack.data, ["expert"])
        table = learn_table(config, data)
    log.info("%d images and %d captions compared", len(table.image), len(table.caption))
    result = measure_all(
        config, data, table, folds=options.folds, refits=options.refits, seeds=options.seeds, budgets=options.budgets
    )
    result["minutes"] = round((time.monotonic() - started) / 60, 2)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    written = tables.page(result)
    (out / "result.md").write_text(written)
    if out == HERE:
        prose, marker, _ = PAGE.read_text().partition(MARKER)
        PAGE.write_text(f"{prose}{marker}\n\n{written}")
    print(written)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uncertainty", description=__doc__.splitlines()[0])
    parser.add_argument("--datapack", type=Path, required=True, help="root folder of the data pack")
    parser.add_argument("--features", type=Path, default=Path("var/features"), help="where frozen features are kept")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--refits", type=int, default=4, help="heads of other draws of the images, for each fold")
    parser.add_argument("--seeds", type=int, default=1, help="learning curves of each strategy, for each fold")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--judged", type=int, help="a slice: so many judged images of flickr8k")
    parser.add_argument("--train", type=int, help="a slice: so many images of the crawl")
    parser.add_argument("--out", type=Path, default=HERE, help="another folder leaves the documentation as it is")
    return parser.parse_args(arguments)


def measure_all(
    config: RewardConfig,
    data: TrainingData,
    table: Table,
    *,
    folds: int,
    refits: int,
    seeds: int,
    budgets: Sequence[int],
) -> dict[str, Any]:
    """All figures; JSON values."""
    trainer = Trainer(config, table)
    covered, answered, fits = [], [], []
    learned: dict[str, list[list[list[Any]]]] = {name: [[] for _ in range(seeds)] for name in curves.STRATEGIES}
    first = 0
    for number, images in enumerate(fold_tables(data.images, folds, seed=config.seed), start=1):
        begun = time.monotonic()
        part = replace(data, images=images)
        splits: dict[str, list[JudgedImage]] = {split: judged_images(part, split) for split in SPLITS}
        model, fitted = trainer.sure_head(splits["train"], splits["validation"])
        covered.append(measure.coverage(trainer, splits, model, fitted, first, refits))
        answered.append(measure.answers(measure.held_out(model, splits["test"], first), fitted))
        fits.append({"precision": fitted.precision, "effective_weights": fitted.effective_weights,
                     "dispersion": fitted.known.dispersion, "weights": len(model.last_layer())})  # fmt: skip
        for name, runs in learned.items():
            for at in range(seeds):
                runs[at].append(
                    curves.learning_curve(
                        trainer, part, splits, first, budgets=budgets, strategy=name, seed=config.seed + at
                    )
                )
        first += len(splits["test"])
        log.info("fold %d of %d: %.0f s", number, folds, time.monotonic() - begun)
    draws = Bootstrap(first, seed=config.seed)
    whole = measure.Answers(
        *(np.concatenate(column) for column in zip(*(_plain(item) for item in answered), strict=True))
    )
    joined = {
        name: [[tuple(np.concatenate(both) for both in zip(*parts, strict=True)) for parts in zip(*run, strict=True)]
               for run in runs]
        for name, runs in learned.items()
    }  # fmt: skip
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}},
        "setting": {"backbone": config.backbone, "folds": folds, "seed": config.seed, "refits": refits, "seeds": seeds,
                    "images": first, "comparisons": len(whole.difference), "budgets": list(budgets)},
        "runs": fits,
        "coverage": measure.coverage_figures(covered, draws),
        "errors": measure.error_figures(whole, draws),
        "probability": measure.probability_figures(whole, draws),
        "learning": curves.curve_figures(joined, whole.image, budgets, draws),
        "ratios": {},
    }  # fmt: skip


def _plain(item: measure.Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return item.difference, item.std, item.image


if __name__ == "__main__":
    sys.exit(main())
