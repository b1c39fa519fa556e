"""Cross-validation by image: every judged image is scored by a model that never saw it.

What belongs here: folds, training one model each, pooling their scores. What does not: training, and what
the scores say (`evidence.py`). Backbones keep frozen features between folds by themselves.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster.errors import InputError
from compalign_dagster.evaluation.evidence import evidence_from
from compalign_dagster.evaluation.held_out import PROBES, HeldOut, crawl_words, joined, score_held_out, text_control
from compalign_dagster.reward.calibration import probability
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.model import Progress, no_progress
from compalign_dagster.reward.training import train

log = logging.getLogger(__name__)

_VALIDATION = 8  # one image in so many of those a fold does not test


@dataclass(frozen=True)
class OutOfFold:
    """Scores of every judged image by the fold's model that never saw it, and how each fold went."""

    held: HeldOut
    probabilities: np.ndarray  # float64 [N], calibrated per fold; NaN where nothing was rated
    folds: list[dict[str, Any]]


def cross_validate(
    config: RewardConfig,
    data: TrainingData,
    *,
    folds: int = 5,
    device: str = "cpu",
    progress: Progress = no_progress,
    matched: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The evidence of `evaluation.evidence` over all judged images, out of fold, and `folds`; JSON values.

    The `split` column of `data.images` is not read. `matched` are captions written for an image, by image_id
    (see `score_held_out`). Raises `InputError` for fewer than 2 folds or fewer images than folds.
    """
    found = out_of_fold(config, data, folds=folds, device=device, progress=progress, matched=matched)
    evidence = evidence_from(found.held, data, found.probabilities, seed=config.seed)
    return evidence | {"folds": found.folds}


def out_of_fold(
    config: RewardConfig,
    data: TrainingData,
    *,
    folds: int = 5,
    device: str = "cpu",
    progress: Progress = no_progress,
    matched: Mapping[str, Sequence[str]] | None = None,
    scored: TrainingData | None = None,
) -> OutOfFold:
    """Train once per fold and score its test images; as `cross_validate`, before any figure.

    `scored` are more judgements, of these images and of others, that are scored and not trained on.
    """
    scored = scored or data
    substitutes = crawl_words(scored)
    parts: list[HeldOut] = []
    probabilities: list[np.ndarray] = []
    told: list[dict[str, Any]] = []
    for fold, images in enumerate(fold_tables(scored.images, folds, seed=config.seed)):
        progress(fold, folds, "folds")
        learned = images.filter(pc.is_in(images["image_id"], value_set=data.images["image_id"].combine_chunks()))
        held_out = images.filter(pc.not_equal(images["split"], pa.scalar("train")))["image_id"].combine_chunks()
        unseen = pc.is_in(data.crawl["image_sha256"], value_set=held_out)  # of `scored` too
        part = replace(data, images=learned, crawl=data.crawl.filter(pc.invert(unseen)))
        trained = train(config, part, device=device)
        held = score_held_out(
            trained.model,
            replace(scored, images=images),
            seed=config.seed,
            before=trained.before,
            matched=matched,
            control=text_control(part),
            substitutes=substitutes,
            probes=PROBES // folds,
        )
        slope, offset = (float(value) for value in trained.model.calibration.tolist())
        parts.append(held)
        probabilities.append(probability(held.scores["reward"], slope, offset))
        told.append({
            "test_images": len(held.images),
            "preference_accuracy": trained.metrics["preference_accuracy"],
            "seconds": round(trained.seconds, 1),
        })  # fmt: skip
        log.info("fold %d of %d: %s", fold + 1, folds, told[-1])
    progress(folds, folds, "folds")
    return OutOfFold(joined(parts), np.concatenate(probabilities), told)


def fold_tables(images: pa.Table, folds: int, *, seed: int) -> list[pa.Table]:
    """The images with their `split` rewritten, once per fold: each image is in the test split of one fold.

    A share of the others is the fold's validation split. Folds differ by at most one image in size.
    """
    count = images.num_rows
    if folds < 2 or count < folds:
        raise InputError(
            "cross-validation",
            expected="at least 2 folds and an image in each",
            found=f"{folds} folds and {count} judged images",
            remedy="Give more judged images or another number of folds.",
        )
    by_id = np.argsort(np.array(images["image_id"].to_pylist(), str), kind="stable")
    order = by_id[np.random.default_rng(seed).permutation(count)]
    tables = []
    for fold in range(folds):
        rest = [place for at, place in enumerate(order) if at % folds != fold]
        split = np.full(count, "test", dtype="<U10")
        split[rest] = "train"
        split[rest[::_VALIDATION]] = "validation"
        column = images.schema.get_field_index("split")
        tables.append(images.set_column(column, images.schema.field(column), pa.array(split.tolist(), pa.string())))
    return tables
