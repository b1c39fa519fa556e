"""What a reward model learns from: judged images with their captions, and crawl pairs without labels.

Tables follow `annotation.tables` (images, captions, ranks, comparisons) and `crawl.tables` (crawl).
What does not belong here: reading annotations or shards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster.crawl.shards import Shard

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TrainingData:
    """Judgements resolved to images, and unlabelled pairs.

    `shards` maps the shard names used by `images` and `crawl` to where their bytes lie; label shards
    and crawl shards have distinct names. `crawl` may have no rows.
    """

    images: pa.Table
    captions: pa.Table
    ranks: pa.Table
    comparisons: pa.Table
    crawl: pa.Table
    shards: Mapping[str, Shard]


@dataclass(frozen=True)
class JudgedImage:
    """One judged image: where it lies, its captions, and who preferred which.

    `better` and `worse` index `captions`, one entry per untied comparison of one labeler. `top` are
    the captions that no comparison puts below another.
    """

    image_id: str
    place: tuple[str, int, int]  # shard, offset, length
    captions: tuple[str, ...]
    better: tuple[int, ...]
    worse: tuple[int, ...]
    ties: int
    top: tuple[int, ...]


def judged_images(data: TrainingData, split: str) -> list[JudgedImage]:
    """The judged images of a split, sorted by id, so that order never depends on the table."""
    captions: dict[str, list[tuple[str, str]]] = {}
    for row in data.captions.select(["image_id", "caption_id", "caption"]).to_pylist():
        captions.setdefault(row["image_id"], []).append((row["caption_id"], row["caption"]))
    comparisons: dict[str, list[dict]] = {}
    for row in data.comparisons.select(["image_id", "better", "worse", "tie"]).to_pylist():
        comparisons.setdefault(row["image_id"], []).append(row)
    rows = data.images.filter(pc.equal(data.images["split"], pa.scalar(split))).to_pylist()
    return [_judged(row, captions, comparisons) for row in sorted(rows, key=lambda row: row["image_id"])]


def _judged(
    image: dict, captions: Mapping[str, list[tuple[str, str]]], comparisons: Mapping[str, list[dict]]
) -> JudgedImage:
    image_id = image["image_id"]
    known = sorted(captions.get(image_id, []))
    index = {caption_id: at for at, (caption_id, _) in enumerate(known)}
    rows = comparisons.get(image_id, [])
    untied = sorted((index[row["better"]], index[row["worse"]]) for row in rows if not row["tie"])
    wins = [0] * len(known)
    for better, worse in untied:
        wins[better] += 1
        wins[worse] -= 1
    best = max(wins, default=0)
    return JudgedImage(
        image_id=image_id,
        place=(image["shard"], image["image_offset"], image["image_length"]),
        captions=tuple(text for _, text in known),
        better=tuple(better for better, _ in untied),
        worse=tuple(worse for _, worse in untied),
        ties=len(rows) - len(untied),
        top=tuple(at for at, score in enumerate(wins) if score == best) if untied else (),
    )


def texts(data: TrainingData) -> Iterator[str]:
    """Every caption a tokenizer may learn from: the crawl's, then those of the training split."""
    for chunk in data.crawl["caption"].iterchunks():
        yield from (str(text) for text in chunk.to_pylist())
    for image in judged_images(data, "train"):
        yield from image.captions
