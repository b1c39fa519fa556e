"""Validated lines and judged images, brought together into the tables a reward model learns from.

What belongs here: finding each line's image, merging lines of one image, comparisons, the split.
What does not: reading files (`read.py`) and counting for people (`summary.py`).
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pyarrow as pa

from compalign_dagster.annotation import tables
from compalign_dagster.annotation.images import FoundImage, JudgedImages
from compalign_dagster.annotation.read import Line, Rejection
from compalign_dagster.annotation.schema import JudgedCaption, Judgement
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.parquet import from_rows

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # of the bytes of the tables

_TRAIN, _VALIDATION = 0.8, 0.1  # shares of the images; the rest is the test split


@dataclass(frozen=True)
class Annotations:
    """The tables of `annotation.tables`, and how many lines they were made from."""

    images: pa.Table
    captions: pa.Table
    ranks: pa.Table
    comparisons: pa.Table
    rejected: pa.Table
    lines: int  # read
    used: int


@dataclass
class _Judged:
    """What is known of one image so far."""

    image: FoundImage
    captions: dict[str, JudgedCaption] = field(default_factory=dict)
    judgements: dict[str, tuple[Judgement, str]] = field(default_factory=dict)  # by labeler; where it stands


def assemble(
    lines: Sequence[Line], rejected: Sequence[Rejection], shards: Sequence[Shard], *, seed: int
) -> Annotations:
    """Find every line's image in `shards` and make the tables; rows do not depend on the order of lines.

    A line is rejected where its image cannot be found, where it gives a caption id another text than an
    earlier line of the image, and where a labeler has judged the image before.

    Raises `InputError` where no line can be used.
    """
    images = JudgedImages.in_shards(shards)
    judged: dict[str, _Judged] = {}
    refused = list(rejected)
    for line in lines:
        found = images.find(line.judged.image)
        problem = found if isinstance(found, tuple) else _merge(judged, found, line)
        if problem is not None:
            refused.append(Rejection(line.file, line.line, *problem))
    read = len(lines) + len(rejected)
    if not judged:
        raise _nothing_usable(refused)
    return _tables(judged, refused, read, seed)


def split_of(image_id: str, seed: int) -> str:
    """The split of an image: 80 % train, 10 % validation, 10 % test, by a hash of its id and the seed."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < _TRAIN:
        return "train"
    return "validation" if place < _TRAIN + _VALIDATION else "test"


def comparisons_of(ranking: Iterable[Iterable[str]]) -> list[tuple[str, str, bool]]:
    """Every two ranked captions as (better, worse, tie); those of a tie in the order of their ids."""
    placed = [(place, caption) for place, group in enumerate(ranking) for caption in sorted(group)]
    return [(first, second, place == other) for (place, first), (other, second) in combinations(placed, 2)]


def problems_in(annotations: Annotations) -> list[str]:
    """What contradicts the promises of these tables, exactly and over all rows; empty when all hold."""
    problems = []
    refused = annotations.rejected.num_rows
    if annotations.lines != annotations.used + refused:
        problems.append(f"{annotations.lines} lines read, but {annotations.used} used and {refused} rejected")
    ids = annotations.images["image_id"].to_pylist()
    if len(set(ids)) != len(ids):
        problems.append(f"{len(ids) - len(set(ids))} images are listed more than once, so could be in two splits")
    captions = list(_pairs(annotations.captions, "caption_id"))
    known = set(captions)
    if len(known) != len(captions):
        problems.append(f"{len(captions) - len(known)} captions are listed more than once")
    used = [*_pairs(annotations.ranks, "caption_id")]
    for side in ("better", "worse"):
        used += _pairs(annotations.comparisons, side)
    for what, missing in (
        ("judged captions are not listed", {pair for pair in used if pair not in known}),
        ("captions are of an image that is not listed", {image for image, _ in known} - set(ids)),
    ):
        if missing:
            problems.append(f"{len(missing)} {what}, among them {min(missing)}")
    return problems


def check(annotations: Annotations) -> None:
    """Raise `ConservationError` for the first of `problems_in`."""
    problems = problems_in(annotations)
    if problems:
        raise ConservationError(
            "annotations",
            expected="every line used or rejected, every image once, every judged caption known",
            found=problems[0],
            remedy="This is a mistake in the program; please report it with the label export.",
        )


def _pairs(table: pa.Table, name: str) -> Iterable[tuple[Any, Any]]:
    return zip(table["image_id"].to_pylist(), table[name].to_pylist(), strict=True)


def _merge(judged: dict[str, _Judged], image: FoundImage, line: Line) -> tuple[str, str] | None:
    """Add a line to its image, whole or not at all; the reason and detail where it contradicts."""
    entry = judged.get(image.image_id, _Judged(image))
    for caption in line.judged.captions:
        known = entry.captions.get(caption.id, caption)
        if known != caption:
            return "caption_differs", f"caption {caption.id!r} of this image has other words in another line"
    for judgement in line.judged.judgements:
        if judgement.labeler in entry.judgements:
            _, place = entry.judgements[judgement.labeler]
            return "labeler_repeats", f"labeler {judgement.labeler!r} judged this image in {place}"
    entry.captions.update({caption.id: caption for caption in line.judged.captions})
    place = f"{line.file}:{line.line}"
    entry.judgements.update({judgement.labeler: (judgement, place) for judgement in line.judged.judgements})
    judged[image.image_id] = entry
    return None


def _tables(judged: Mapping[str, _Judged], refused: Sequence[Rejection], read: int, seed: int) -> Annotations:
    images: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    ranks: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for image_id, entry in sorted(judged.items()):
        images.append({**vars(entry.image), "split": split_of(image_id, seed)})
        captions += [
            {
                "image_id": image_id,
                "caption_id": caption_id,
                "caption": caption.text,
                "caption_source": caption.source,
                "captioner": caption.model,
            }
            for caption_id, caption in sorted(entry.captions.items())
        ]
        for labeler, (judgement, _) in sorted(entry.judgements.items()):
            who = {"image_id": image_id, "labeler": labeler}
            ranks += [{**who, **row} for row in _rank_rows(judgement)]
            comparisons += [
                {**who, "better": better, "worse": worse, "tie": tie}
                for better, worse, tie in comparisons_of(judgement.ranking)
            ]
    rows = sorted((vars(item) for item in refused), key=lambda row: (row["file"], row["line"]))
    annotations = Annotations(
        images=from_rows(images, tables.IMAGES),
        captions=from_rows(captions, tables.CAPTIONS),
        ranks=from_rows(ranks, tables.RANKS),
        comparisons=from_rows(comparisons, tables.COMPARISONS),
        rejected=from_rows(rows, tables.REJECTED),
        lines=read,
        used=read - len(refused),
    )
    check(annotations)
    level = logging.WARNING if refused else logging.INFO
    logger.log(
        level,
        "annotations: %d lines used, %d rejected, %d comparisons",
        annotations.used,
        len(refused),
        len(comparisons),
    )
    return annotations


def _rank_rows(judgement: Judgement) -> list[dict[str, Any]]:
    ranks = {caption: place for place, group in enumerate(judgement.ranking, start=1) for caption in group}
    rows = []
    for caption_id in sorted(ranks.keys() | judgement.ratings.keys()):
        ratings = judgement.ratings.get(caption_id)
        given = ratings.model_dump() if ratings else {}
        rows.append(
            {
                "caption_id": caption_id,
                "rank": ranks.get(caption_id),
                **given,
                "seconds": judgement.seconds,
                "guideline": judgement.guideline,
            }
        )
    return rows


def _nothing_usable(refused: Sequence[Rejection]) -> InputError:
    if not refused:
        found = "no line at all"
    else:
        first = refused[0]
        found = f"{len(refused)} rejected; the first, {first.file}:{first.line}: {first.reason} ({first.detail})"
    return InputError(
        "annotations",
        expected="at least one usable line of judgements",
        found=found,
        remedy="Correct the export, and give the shards that hold the judged images.",
    )
