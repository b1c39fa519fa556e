"""Kept pairs as new webdataset shards, for trainers that cannot read by offset.

What belongs here: writing tars whose images are the source's bytes and whose own bytes depend on the
kept rows alone. What does not: decoding or changing an image.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.errors import InputError
from compalign_dagster.selection.pairs import proved
from compalign_dagster.versions import canonical_json

Frame = pl.DataFrame | pa.Table

_ROWS = 10_000
_SUFFIXES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif"}


def reshard(
    kept: Frame | Iterable[Frame], shards: Mapping[str, Shard], out_dir: Path, per_shard: int = 10_000
) -> list[Path]:
    """Write `out_dir/00000.tar` and so on, `per_shard` images each, in the order of `kept`; return the paths.

    `kept` follows `tables.KEPT` in reading order, whole or in pieces, of which one is in memory; `shards` maps its
    shard names to where they lie. A sample is `NNNNNNNNN.<suffix>` with the image's bytes and `NNNNNNNNN.json` with
    `captions`, `pair_ids`, `rewards` and the source's `shard` and `key`. Equal rows give equal tars.

    Raises:
        InputError: when a shard is not given, or has changed: each image is proved by its pairs before it is written.
    """
    if per_shard < 1:
        raise ValueError("per_shard must be at least 1")
    out_dir.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    numbered = enumerate(_samples([kept] if isinstance(kept, Frame) else kept))
    with MemberReader() as members:
        for number, samples in groupby(numbered, lambda item: item[0] // per_shard):
            path = out_dir / f"{number:05d}.tar"
            part = path.with_suffix(".tar.part")
            with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
                for at, sample in samples:
                    _write(tar, f"{at:09d}", sample, shards, members)
            part.replace(path)
            paths.append(path)
    return paths


def _samples(pieces: Iterable[Frame]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each image, which may lie in two pieces."""
    rows = (row for piece in pieces for row in _rows(piece))
    for _, pairs in groupby(rows, lambda row: (row["shard"], row["key"], row["image_offset"], row["image_length"])):
        yield list(pairs)


def _rows(piece: Frame) -> Iterator[dict[str, Any]]:
    if isinstance(piece, pl.DataFrame):
        yield from piece.iter_rows(named=True)
    else:
        for batch in piece.to_batches(max_chunksize=_ROWS):
            yield from batch.to_pylist()


def _write(
    tar: tarfile.TarFile, name: str, pairs: list[dict[str, Any]], shards: Mapping[str, Shard], members: MemberReader
) -> None:
    first = pairs[0]
    shard = shards.get(first["shard"])
    if shard is None:
        raise InputError(
            f"shard {first['shard']}",
            expected="to be among the shards given",
            found="kept pairs of it, but not the shard",
            remedy="Give every shard the dataset was filtered from.",
        )
    image = members.read(shard, first["image_offset"], first["image_length"])
    for pair in pairs:
        proved(pair, image)
    facts = {
        "captions": [pair["caption"] for pair in pairs],
        "pair_ids": [pair["pair_id"] for pair in pairs],
        "rewards": [pair["reward"] for pair in pairs],
        "source": {"shard": first["shard"], "key": first["key"]},
    }
    _add(tar, f"{name}.{_suffix(image)}", image)
    _add(tar, f"{name}.json", canonical_json(facts))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member with a header of fixed owner, mode and time."""
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = len(data), 0o644, 0
    tar.addfile(header, io.BytesIO(data))


def _suffix(image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    return next((suffix for magic, suffix in _SUFFIXES.items() if image.startswith(magic)), "img")
