"""Judgements that others collected, turned into lines of the annotation contract.

What belongs here: one function per foreign layout, from its table to contract lines. What does
not: reading, validating and splitting the contract itself (`read.py`, `assemble.py`), what importers
share (`foreign.py`), and sources with other questions (`importers_coco.py`).

Mapping of Flickr8k's judgements. Each of its sources asked one question, whether the sentence describes
the image, so its answer is a rating of *accuracy*; completeness, vividness and context were not
asked and stay empty. Answers are rescaled linearly onto the contract's 1 to 5, and a labeler's
ranking is the order of the labeler's own answers, equal answers being ties.

- expert: 1 "does not describe the image" to 4 "describes it", three answers a pair. A labeler is one
  answer column; accuracy = 1 + (r - 1) * 4 / 3. A column is not always the same person; it is taken
  as one labeler because the table says no more.
- crowd: yes or no, at least three votes a pair, the voters not told apart. One labeler, the pooled
  votes; accuracy = 1 + 4 * share of yes.
- composite: 1 to 5, one answer a pair. One labeler, the pooled workers; accuracy = r.

Captions written for the image itself are left out of expert and crowd, as the published protocol
does (Hodosh, Young, Hockenmaier, JAIR 47, 2013): nearly all of them get the best answer.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster.annotation.foreign import (
    ImageAnswers,
    Line,
    answer,
    caption_by,
    checked_rows,
    human_caption,
    lines_of,
    within,
)
from compalign_dagster.annotation.importers_coco import (
    context_evaluation,
    crisscrossed,
    spatial_reasoning,
    sugarcrepe,
    thumb,
)
from compalign_dagster.errors import InputError


def flickr8k_expert(table: pa.Table, *, shard: str, own_captions: bool = False) -> Iterator[Line]:
    """Lines from `image_id, caption_id, caption, own_caption, rating_1..rating_3` (1 to 4).

    One line per image, three labelers each. Raises `InputError` for a missing column or a rating
    outside its scale.
    """
    columns = ("rating_1", "rating_2", "rating_3")
    images: dict[str, ImageAnswers] = {}
    for row in checked_rows(table, "expert", "image_id", "caption_id", "caption", "own_caption", *columns):
        if row["own_caption"] and not own_captions:
            continue
        image = images.setdefault(row["image_id"], ImageAnswers())
        image.captions[row["caption_id"]] = human_caption(row)
        for number, column in enumerate(columns, start=1):
            rating = within(row[column], 1, 4, f"{column} of caption {row['caption_id']}")
            answer(image, f"flickr8k-expert-{number}", row["caption_id"], 1 + (rating - 1) * 4 / 3)
    yield from lines_of(images, shard, guideline="flickr8k-expert")


def flickr8k_crowd(table: pa.Table, *, shard: str, own_captions: bool = False) -> Iterator[Line]:
    """Lines from `image_id, caption_id, caption, own_caption, yes_fraction` (0 to 1).

    One line per image with one labeler, the pooled votes. Raises `InputError` as `flickr8k_expert`.
    """
    images: dict[str, ImageAnswers] = {}
    for row in checked_rows(table, "crowd", "image_id", "caption_id", "caption", "own_caption", "yes_fraction"):
        if row["own_caption"] and not own_captions:
            continue
        image = images.setdefault(row["image_id"], ImageAnswers())
        image.captions[row["caption_id"]] = human_caption(row)
        share = within(row["yes_fraction"], 0, 1, f"yes_fraction of caption {row['caption_id']}")
        answer(image, "flickr8k-crowd", row["caption_id"], 1 + 4 * share)
    yield from lines_of(images, shard, guideline="flickr8k-crowd")


def composite(table: pa.Table, *, shard: str) -> Iterator[Line]:
    """Lines from `image_id, candidate, caption, rating` (1 to 5); `candidate` says who wrote it.

    The candidate "human" is a human caption, any other name is a captioning model's. Raises
    `InputError` as `flickr8k_expert`.
    """
    images: dict[str, ImageAnswers] = {}
    for row in checked_rows(table, "composite", "image_id", "candidate", "caption", "rating"):
        image = images.setdefault(row["image_id"], ImageAnswers())
        caption_id = f"{row['image_id']}#composite-{row['candidate']}"
        image.captions[caption_id] = caption_by(caption_id, row["caption"], row["candidate"])
        rating = within(row["rating"], 1, 5, f"rating of {caption_id}")
        answer(image, "composite", caption_id, rating)
    yield from lines_of(images, shard, guideline="composite")


@dataclass(frozen=True)
class Source:
    """One judgement table of the data pack."""

    file: str  # below the data pack
    importer: Callable[..., Iterator[Line]]


SOURCES: Mapping[str, Source] = {
    "expert": Source("flickr8k/judgments_expert.parquet", flickr8k_expert),
    "crowd": Source("flickr8k/judgments_crowd.parquet", flickr8k_crowd),
    "composite": Source("flickr8k/judgments_composite.parquet", composite),
    "context": Source("wiki_context/judgments_sighted.parquet", context_evaluation),
    "thumb": Source("coco_mini/judgments_thumb.parquet", thumb),
    "cxc": Source("coco_mini/judgments_cxc.parquet", crisscrossed),
    "vsr": Source("coco_mini/judgments_vsr.parquet", spatial_reasoning),
    "sugarcrepe": Source("coco_mini/sugarcrepe.parquet", sugarcrepe),
}


def import_datapack(datapack: Path, source: str, *, shard: str) -> Iterator[Line]:
    """Contract lines of one of SOURCES; `shard` holds the judged images.

    Raises `InputError` for an unknown source or a table that is missing or unreadable.
    """
    if source not in SOURCES:
        raise InputError(
            f"judgement source {source!r}",
            expected=f"one of {', '.join(SOURCES)}",
            found="another name",
            remedy="Name one of them.",
        )
    path = datapack / SOURCES[source].file
    try:
        table = pq.read_table(path, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"judgements {path}",
            expected="a readable Parquet table",
            found=type(error).__name__,
            remedy="Give the data pack's root folder, the one with flickr8k/ in it.",
        ) from error
    return SOURCES[source].importer(table, shard=shard)
