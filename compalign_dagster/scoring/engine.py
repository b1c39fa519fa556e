"""Scoring a shard's pairs: the fp32 reference that every other engine is compared with.

Images are read and encoded once for all of their captions, in batches that never span shards. What
does not belong here: which shards to score, artifacts, the ledger.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from compalign_dagster.compute import pick_device
from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.crawl.tables import QUARANTINE
from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.images import ImageRejected, decode
from compalign_dagster.parquet import from_rows
from compalign_dagster.reward.model import Progress, RewardModel, no_progress
from compalign_dagster.scoring.tables import FIGURES, SCORES

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32",)


@dataclass(frozen=True)
class ScoringConfig:
    """How to score. Only `precision` and `image_pixels` change bytes on purpose; the rest is recorded."""

    precision: str = "fp32"
    device: str = "auto"
    batch_images: int = 32
    batch_captions: int = 512
    image_pixels: int = 89_478_485  # refuse to decode more
    threads: int | None = None  # of torch; None leaves them as they are


@dataclass(frozen=True)
class ShardScores:
    """Scores (SCORES) and quarantine (crawl QUARANTINE) of one shard; together every pair that went in."""

    scores: pa.Table
    quarantine: pa.Table
    seconds: float
    over_long: int  # captions of which the model read only the beginning; scored, and counted here


def score_shard(
    model: RewardModel,
    model_version: str,
    shard: Shard,
    pairs: pa.Table,
    config: ScoringConfig | None = None,
    *,
    progress: Progress = no_progress,
) -> ShardScores:
    """One reward for each of the shard's `pairs` (PAIRS), in their order.

    A pair whose image no longer decodes, or whose reward is not finite, is quarantined with its
    reason. `progress` counts pairs. Raises `InputError` for an unknown precision or a shard that
    `pairs` do not name, and `ConservationError` if a pair were lost.
    """
    config = config or ScoringConfig()
    if config.precision not in PRECISIONS:
        raise InputError(
            "setting precision",
            expected="fp32",
            found=repr(config.precision),
            remedy="Use the reference precision.",
        )
    others = sorted({str(name) for name in pairs["shard"].unique().to_pylist()} - {shard.name})
    if others:
        raise InputError(
            f"pairs to score from shard {shard.name}",
            expected="pairs of that shard alone",
            found=f"pairs of {others[0]}",
            remedy="Filter the pair index by shard first.",
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    started = time.monotonic()
    model = model.to(pick_device(config.device)).eval()
    found = np.full((len(pairs), len(FIGURES)), np.nan, np.float32)
    refused: dict[int, tuple[str, str]] = {}
    done = 0
    with torch.inference_mode():
        for rows, images in _batches(shard, pairs, model, config, refused):
            if images:
                found[rows] = _score(model, images, rows, pairs, config.batch_captions)
            done = len(refused) + int(np.isfinite(found[:, 0]).sum())
            progress(done, len(pairs), f"pairs of {shard.name}")
    for row in np.flatnonzero(~np.isfinite(found[:, 0])):
        refused.setdefault(int(row), ("reward_not_finite", f"reward {found[row, 0]}"))
    captions = [str(text) for text in pairs["caption"].to_pylist()]
    over_long = sum(count > model.config.max_caption_tokens for count in model.token_counts(captions))
    scores = _scores(pairs, found, refused, model_version)
    quarantine = _quarantine(pairs, refused)
    if len(scores) + len(quarantine) != len(pairs):
        raise ConservationError(
            f"scoring of shard {shard.name}",
            expected=f"{len(pairs)} pairs scored or quarantined",
            found=f"{len(scores)} + {len(quarantine)}",
            remedy="This is a fault of the program; please report it.",
        )
    seconds = time.monotonic() - started
    logger.info("scored %d pairs of %s in %.1f s, %d quarantined", len(scores), shard.name, seconds, len(quarantine))
    return ShardScores(scores, quarantine, seconds, over_long)


@dataclass(frozen=True)
class _Image:
    prepared: torch.Tensor
    rows: list[int]


def _batches(
    shard: Shard,
    pairs: pa.Table,
    model: RewardModel,
    config: ScoringConfig,
    refused: dict[int, tuple[str, str]],
) -> Iterator[tuple[list[int], list[_Image]]]:
    """Groups of decoded images with the rows of their pairs; rows of undecodable images go to `refused`."""
    by_image: dict[tuple[int, int], list[int]] = {}
    offsets, lengths = pairs["image_offset"].to_numpy(), pairs["image_length"].to_numpy()
    for row, (offset, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
        by_image.setdefault((offset, length), []).append(row)
    waiting: list[_Image] = []
    with MemberReader() as members:
        for (offset, length), rows in by_image.items():
            try:
                image = decode(members.read(shard, offset, length), max_pixels=config.image_pixels)
            except ImageRejected as error:
                refused.update({row: (error.reason, error.detail) for row in rows})
                continue
            waiting.append(_Image(model.prepare(image), rows))
            if len(waiting) == config.batch_images:
                yield [row for item in waiting for row in item.rows], waiting
                waiting = []
    yield [row for item in waiting for row in item.rows], waiting


def _score(
    model: RewardModel, images: list[_Image], rows: list[int], pairs: pa.Table, most_captions: int
) -> np.ndarray:
    """FIGURES of these rows, float32 [len(rows), 9]; the reward comes first."""
    states = model.encode_images(torch.stack([item.prepared for item in images]).to(model.device))
    index = torch.tensor([at for at, item in enumerate(images) for _ in item.rows])
    captions = pairs["caption"].take(pa.array(rows)).to_pylist()
    found = []
    for start in range(0, len(rows), most_captions):
        part = slice(start, start + most_captions)
        outputs = model(states, captions[part], index[part])
        columns = (
            outputs.reward,
            outputs.cosine,
            outputs.itm,
            outputs.label_free,
            model.human_fit(outputs.reward),
            *outputs.criteria.T,
        )
        found.append(torch.stack([column.float() for column in columns], dim=1).cpu().numpy())
    return np.concatenate(found)


def _scores(pairs: pa.Table, found: np.ndarray, refused: dict[int, tuple[str, str]], model_version: str) -> pa.Table:
    kept = np.array([row for row in range(len(pairs)) if row not in refused], np.int64)
    table = pairs.take(kept)
    figures: dict[str, pa.Array] = {
        name: pa.array(values, pa.float32(), mask=~np.isfinite(values))
        for name, values in zip(FIGURES, found[kept].T, strict=True)
    }
    figures["model_version"] = pa.array([model_version] * len(kept), pa.string())
    for name in SCORES.names:
        if name not in figures:
            figures[name] = table[name].combine_chunks()
    return pa.Table.from_arrays([figures[name] for name in SCORES.names], schema=SCORES)


def _quarantine(pairs: pa.Table, refused: dict[int, tuple[str, str]]) -> pa.Table:
    rows = []
    names = ["shard", "key", "caption_index", "image_offset"]
    for row in sorted(refused):
        place = {name: pairs[name][row].as_py() for name in names}
        reason, detail = refused[row]
        rows.append(
            {
                "shard": place["shard"],
                "key": place["key"],
                "unit": "caption",
                "caption_index": place["caption_index"],
                "offset": place["image_offset"],
                "reason": reason,
                "detail": detail,
            }
        )
    return from_rows(rows, QUARANTINE)


def total(scores: list[ShardScores]) -> dict[str, int | float]:
    """Facts of many shards together: scored, quarantined and over-long pairs, and seconds."""
    return {
        "scored": sum(len(item.scores) for item in scores),
        "quarantined": sum(len(item.quarantine) for item in scores),
        "over_long": sum(item.over_long for item in scores),
        "seconds": sum(item.seconds for item in scores),
    }


def summary(scores: pa.Table) -> dict[str, float | int | None]:
    """Count, mean, standard deviation, least and greatest reward of a table of scores."""
    reward = scores["reward"]
    return {
        "pairs": len(scores),
        "mean": pc.mean(reward).as_py(),
        "std": pc.stddev(reward).as_py(),
        "least": pc.min(reward).as_py(),
        "greatest": pc.max(reward).as_py(),
    }
