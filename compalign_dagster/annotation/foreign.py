"""Foreign answers, collected by image, to lines of the annotation contract.

What belongs here: what every importer shares: checked rows, rankings from answers, lines in a fixed order.
What does not: what a foreign layout means (`importers.py`, `importers_coco.py`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from compalign_dagster.errors import InputError

Line = dict[str, Any]
"""One contract line: `image`, `captions`, `judgements`."""


Ratings = dict[str, float]
"""By criterion, 1 to 5."""


@dataclass
class ImageAnswers:
    """What was found about one image, in the order found."""

    captions: dict[str, dict[str, str]] = field(default_factory=dict)
    answers: dict[str, dict[str, Ratings]] = field(default_factory=dict)  # labeler -> caption id -> ratings
    worth: dict[str, dict[str, float]] = field(default_factory=dict)  # labeler -> caption id -> what ranks


def dense_ranking(ratings: Mapping[str, float]) -> list[list[str]]:
    """Caption ids from best to worst; equal ratings share a place, in id order."""
    groups: dict[float, list[str]] = {}
    for caption_id in sorted(ratings):
        groups.setdefault(ratings[caption_id], []).append(caption_id)
    return [groups[rating] for rating in sorted(groups, reverse=True)]


def write_lines(lines: Iterable[Line], path: Path) -> int:
    """Write contract lines as JSONL, one object a line with sorted keys; return how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for line in lines:
            out.write(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n")
            count += 1
    return count


def human_caption(row: Mapping[str, Any]) -> dict[str, str]:
    """The contract's caption of a row with `caption_id, caption`, written by a person."""
    return {"id": row["caption_id"], "text": row["caption"], "source": "human"}


def caption_by(caption_id: str, text: str, system: str) -> dict[str, str]:
    """A caption by a person, where the system is called so, or by a model."""
    caption = {"id": caption_id, "text": text, "source": "human"}
    return caption if system.lower() == "human" else caption | {"source": "model", "model": system}


def answer(image: ImageAnswers, labeler: str, caption_id: str, accuracy: float) -> None:
    """One answer that rates accuracy and ranks."""
    image.answers.setdefault(labeler, {})[caption_id] = {"accuracy": accuracy}
    image.worth.setdefault(labeler, {})[caption_id] = accuracy


def checked_rows(table: pa.Table, source: str, *columns: str) -> list[dict[str, Any]]:
    """The rows with these columns. `InputError` where the table of `source` lacks one."""
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(
            f"{source} judgements",
            expected=f"columns {', '.join(columns)}",
            found=f"no {', '.join(missing)}",
            remedy="Give the table in its published layout.",
        )
    return table.select(list(columns)).to_pylist()


def within(value: float | None, low: float, high: float, what: str) -> float:
    """The value. `InputError` that names `what` where it is no number from `low` to `high`."""
    if value is None or not low <= value <= high:  # NaN compares false
        raise InputError(
            what,
            expected=f"a number from {low} to {high}",
            found=repr(value),
            remedy="Mend or leave out the row.",
        )
    return float(value)


def lines_of(images: Mapping[str, ImageAnswers], shard: str, *, guideline: str) -> Iterator[Line]:
    """One line per image, in the order of image ids; captions and labelers in the order of theirs."""
    for image_id in sorted(images):
        image = images[image_id]
        judgements = [
            {
                "labeler": labeler,
                "ranking": dense_ranking(image.worth.get(labeler, {})),
                "ratings": {
                    caption_id: {name: round(value, 4) for name, value in given.items()}
                    for caption_id, given in sorted(image.answers.get(labeler, {}).items())
                },
                "guideline": guideline,
            }
            for labeler in sorted(image.answers.keys() | image.worth.keys())
        ]
        yield {
            "image": {"shard": shard, "key": sample_key(image_id), "sha256": None},
            "captions": [image.captions[caption_id] for caption_id in sorted(image.captions)],
            "judgements": judgements,
        }


def sample_key(image_id: str) -> str:
    """The webdataset key of an image named by its file: the name up to the first dot."""
    return image_id.partition(".")[0]
