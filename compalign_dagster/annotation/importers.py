"""Judgements that others collected, turned into lines of the annotation contract.

What belongs here: one function per foreign layout, from its table to contract lines. What does
not: reading, validating and splitting the contract itself (`read.py`, `assemble.py`).

Mapping of Flickr8k's judgements. Each source asked one question, whether the sentence describes
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

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster.errors import InputError

Line = dict[str, Any]
"""One contract line: `image`, `captions`, `judgements`."""


@dataclass
class _Image:
    """What was found about one image, in the order found."""

    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    answers: dict[str, dict[str, float]] = field(default_factory=dict)  # labeler -> caption id -> accuracy


def dense_ranking(ratings: Mapping[str, float]) -> list[list[str]]:
    """Caption ids from best to worst; equal ratings share a place, in id order."""
    groups: dict[float, list[str]] = {}
    for caption_id in sorted(ratings):
        groups.setdefault(ratings[caption_id], []).append(caption_id)
    return [groups[rating] for rating in sorted(groups, reverse=True)]


def flickr8k_expert(table: pa.Table, *, shard: str, own_captions: bool = False) -> Iterator[Line]:
    """Lines from `image_id, caption_id, caption, own_caption, rating_1..rating_3` (1 to 4).

    One line per image, three labelers each. Raises `InputError` for a missing column or a rating
    outside its scale.
    """
    columns = ("rating_1", "rating_2", "rating_3")
    images: dict[str, _Image] = {}
    for row in _rows(table, "expert", "image_id", "caption_id", "caption", "own_caption", *columns):
        if row["own_caption"] and not own_captions:
            continue
        image = images.setdefault(row["image_id"], _Image())
        image.captions[row["caption_id"]] = _human(row)
        for number, column in enumerate(columns, start=1):
            rating = _within(row[column], 1, 4, f"{column} of caption {row['caption_id']}")
            _answer(image, f"flickr8k-expert-{number}", row["caption_id"], 1 + (rating - 1) * 4 / 3)
    yield from _lines(images, shard, guideline="flickr8k-expert")


def flickr8k_crowd(table: pa.Table, *, shard: str, own_captions: bool = False) -> Iterator[Line]:
    """Lines from `image_id, caption_id, caption, own_caption, yes_fraction` (0 to 1).

    One line per image with one labeler, the pooled votes. Raises `InputError` as `flickr8k_expert`.
    """
    images: dict[str, _Image] = {}
    for row in _rows(table, "crowd", "image_id", "caption_id", "caption", "own_caption", "yes_fraction"):
        if row["own_caption"] and not own_captions:
            continue
        image = images.setdefault(row["image_id"], _Image())
        image.captions[row["caption_id"]] = _human(row)
        share = _within(row["yes_fraction"], 0, 1, f"yes_fraction of caption {row['caption_id']}")
        _answer(image, "flickr8k-crowd", row["caption_id"], 1 + 4 * share)
    yield from _lines(images, shard, guideline="flickr8k-crowd")


def composite(table: pa.Table, *, shard: str) -> Iterator[Line]:
    """Lines from `image_id, candidate, caption, rating` (1 to 5); `candidate` says who wrote it.

    The candidate "human" is a human caption, any other name is a captioning model's. Raises
    `InputError` as `flickr8k_expert`.
    """
    images: dict[str, _Image] = {}
    for row in _rows(table, "composite", "image_id", "candidate", "caption", "rating"):
        image = images.setdefault(row["image_id"], _Image())
        caption_id = f"{row['image_id']}#composite-{row['candidate']}"
        caption = {"id": caption_id, "text": row["caption"], "source": "human"}
        if row["candidate"] != "human":
            caption |= {"source": "model", "model": row["candidate"]}
        image.captions[caption_id] = caption
        rating = _within(row["rating"], 1, 5, f"rating of {caption_id}")
        _answer(image, "composite", caption_id, rating)
    yield from _lines(images, shard, guideline="composite")


@dataclass(frozen=True)
class Source:
    """One judgement table of the data pack."""

    file: str  # below the data pack
    importer: Callable[..., Iterator[Line]]


SOURCES: Mapping[str, Source] = {
    "expert": Source("flickr8k/judgments_expert.parquet", flickr8k_expert),
    "crowd": Source("flickr8k/judgments_crowd.parquet", flickr8k_crowd),
    "composite": Source("flickr8k/judgments_composite.parquet", composite),
}


def import_datapack(datapack: Path, source: str, *, shard: str) -> Iterator[Line]:
    """Contract lines of one source ("expert", "crowd", "composite"); `shard` holds the judged images.

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


def write_lines(lines: Iterable[Line], path: Path) -> int:
    """Write contract lines as JSONL, one object a line with sorted keys; return how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for line in lines:
            out.write(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n")
            count += 1
    return count


def _human(row: Mapping[str, Any]) -> dict[str, str]:
    return {"id": row["caption_id"], "text": row["caption"], "source": "human"}


def _answer(image: _Image, labeler: str, caption_id: str, accuracy: float) -> None:
    image.answers.setdefault(labeler, {})[caption_id] = accuracy


def _rows(table: pa.Table, source: str, *columns: str) -> list[dict[str, Any]]:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(
            f"{source} judgements",
            expected=f"columns {', '.join(columns)}",
            found=f"no {', '.join(missing)}",
            remedy="Give the table in its published layout.",
        )
    return table.select(list(columns)).to_pylist()


def _within(value: float | None, low: float, high: float, what: str) -> float:
    if value is None or not low <= value <= high:  # NaN compares false
        raise InputError(
            what,
            expected=f"a number from {low} to {high}",
            found=repr(value),
            remedy="Mend or leave out the row.",
        )
    return float(value)


def _lines(images: Mapping[str, _Image], shard: str, *, guideline: str) -> Iterator[Line]:
    """One line per image, in the order of image ids; captions and labelers in the order of theirs."""
    for image_id in sorted(images):
        image = images[image_id]
        judgements = [
            {
                "labeler": labeler,
                "ranking": dense_ranking(answers),
                "ratings": {cid: {"accuracy": round(answers[cid], 4)} for cid in sorted(answers)},
                "guideline": guideline,
            }
            for labeler, answers in sorted(image.answers.items())
        ]
        yield {
            "image": {"shard": shard, "key": sample_key(image_id), "sha256": None},
            "captions": [image.captions[caption_id] for caption_id in sorted(image.captions)],
            "judgements": judgements,
        }


def sample_key(image_id: str) -> str:
    """The webdataset key of an image named by its file: the name up to the first dot."""
    return image_id.partition(".")[0]
