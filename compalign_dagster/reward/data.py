"""What a reward model learns from: judged images with their captions, and crawl pairs without labels.

Tables follow `annotation.tables` (images, captions, ranks, comparisons) and `crawl.tables` (crawl).
What does not belong here: reading annotations or shards.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.crawl.shards import Shard

SPLITS = ("train", "validation", "test")

Place = tuple[str, int, int]  # shard, offset, length: where an image's bytes lie
CrawlPair = tuple[Place, str]  # an image and its caption


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
    """One judged image: where it lies, its captions, who preferred which, and how they were rated.

    `better` and `worse` index `captions`, one entry per untied comparison of one labeler, who weighs
    `weight`. `top` are the captions with the best balance of wins. A rating is the mean over labelers
    by their weight, as (rating - 1) / 4; `math.nan` where nobody gave one. `trust` is the greatest
    weight of a labeler who rated the caption.
    """

    image_id: str
    place: Place
    captions: tuple[str, ...]
    better: tuple[int, ...]
    worse: tuple[int, ...]
    ties: int
    top: tuple[int, ...]
    weight: tuple[float, ...]  # one per comparison
    caption_ids: tuple[str, ...]
    caption_sources: tuple[str, ...]
    ratings: tuple[tuple[float, ...], ...]  # per caption, in the order of CRITERIA, 0 to 1
    trust: tuple[float, ...]  # one per caption, 0 where nobody rated it

    @property
    def rated(self) -> bool:
        """Whether any caption has a rating."""
        return any(self.trust)


def judged_images(
    data: TrainingData, split: str, labeler_weights: Mapping[str, float] = MappingProxyType({})
) -> list[JudgedImage]:
    """The judged images of a split, sorted by id, so that order never depends on the table.

    `labeler_weights` of labelers who are not named are 1; judgements of weight 0 do not exist here.
    """
    captions = _by_image(data.captions, ["caption_id", "caption", "caption_source"])
    comparisons = _by_image(data.comparisons, ["labeler", "better", "worse", "tie"])
    ranks = _by_image(data.ranks, ["labeler", "caption_id", *CRITERIA])
    rows = data.images.filter(pc.equal(data.images["split"], pa.scalar(split))).to_pylist()
    found = []
    for row in sorted(rows, key=lambda row: row["image_id"]):
        image_id = row["image_id"]
        known = sorted(captions.get(image_id, []), key=lambda caption: caption["caption_id"])
        ids = tuple(caption["caption_id"] for caption in known)
        place = (row["shard"], row["image_offset"], row["image_length"])
        found.append(
            JudgedImage(
                image_id=image_id,
                place=place,
                captions=tuple(caption["caption"] for caption in known),
                caption_ids=ids,
                caption_sources=tuple(caption["caption_source"] for caption in known),
                **_preferences(ids, comparisons.get(image_id, []), labeler_weights),
                **_ratings(ids, ranks.get(image_id, []), labeler_weights),
            )
        )
    return found


def _by_image(table: pa.Table, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.select(["image_id", *names]).to_pylist():
        found.setdefault(row["image_id"], []).append(row)
    return found


def _preferences(ids: tuple[str, ...], rows: list[dict[str, Any]], weights: Mapping[str, float]) -> dict[str, Any]:
    index = {caption_id: at for at, caption_id in enumerate(ids)}
    rows = [row for row in rows if weights.get(row["labeler"], 1.0)]
    untied = sorted(
        (index[row["better"]], index[row["worse"]], weights.get(row["labeler"], 1.0)) for row in rows if not row["tie"]
    )
    balance: list[list[float]] = [[] for _ in ids]
    for better, worse, weight in untied:
        balance[better].append(weight)
        balance[worse].append(-weight)
    wins = [math.fsum(found) for found in balance]
    return {
        "better": tuple(better for better, _, _ in untied),
        "worse": tuple(worse for _, worse, _ in untied),
        "weight": tuple(weight for _, _, weight in untied),
        "ties": len(rows) - len(untied),
        "top": tuple(at for at, score in enumerate(wins) if score == max(wins)) if untied else (),
    }


def _ratings(ids: tuple[str, ...], rows: list[dict[str, Any]], weights: Mapping[str, float]) -> dict[str, Any]:
    given: dict[str, list[tuple[float, dict[str, Any]]]] = {caption_id: [] for caption_id in ids}
    for row in rows:
        weight = weights.get(row["labeler"], 1.0)
        if weight and any(row[name] is not None for name in CRITERIA):
            given[row["caption_id"]].append((weight, row))
    return {
        "ratings": tuple(
            tuple(_mean([(weight, row[name]) for weight, row in given[caption_id]]) for name in CRITERIA)
            for caption_id in ids
        ),
        "trust": tuple(max((weight for weight, _ in given[caption_id]), default=0.0) for caption_id in ids),
    }


def _mean(rated: list[tuple[float, float | None]]) -> float:
    """Weighted mean of ratings 1 to 5, as 0 to 1; `math.nan` of none."""
    known = [(weight, rating) for weight, rating in rated if rating is not None]
    if not known:
        return math.nan
    mean = math.fsum(weight * rating for weight, rating in known) / math.fsum(weight for weight, _ in known)
    return (mean - 1) / 4


def texts(data: TrainingData) -> Iterator[str]:
    """Every caption a tokenizer may learn from: the crawl's, then those of the training split."""
    for chunk in data.crawl["caption"].iterchunks():
        yield from (str(text) for text in chunk.to_pylist())
    for image in judged_images(data, "train"):
        yield from image.captions
