"""Kept pairs as new webdataset shards, for trainers that cannot read by offset.

What belongs here: writing tars whose images are the source's bytes and whose own bytes depend on the
kept rows alone. What does not: decoding or changing an image.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.errors import InputError
from compalign_dagster.versions import canonical_json

_SUFFIXES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif"}


def reshard(kept: pa.Table, shards: Mapping[str, Shard], out_dir: Path, per_shard: int = 10_000) -> list[Path]:
    """Write `out_dir/00000.tar` and so on, `per_shard` images each, in the order of `kept`; return the paths.

    `kept` follows `tables.KEPT` in reading order; `shards` maps its shard names to where they lie. A sample
    is `NNNNNNNNN.<suffix>` with the image's bytes and `NNNNNNNNN.json` with `captions`, `pair_ids`,
    `rewards` and the source's `shard` and `key`. Equal inputs give equal tars.
    """
    if per_shard < 1:
        raise ValueError("per_shard must be at least 1")
    out_dir.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    samples = list(_samples(kept))
    with MemberReader() as members:
        for start in range(0, len(samples), per_shard):
            path = out_dir / f"{len(paths):05d}.tar"
            part = path.with_suffix(".tar.part")
            with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
                for at, sample in enumerate(samples[start : start + per_shard], start=start):
                    _write(tar, f"{at:09d}", sample, shards, members)
            part.replace(path)
            paths.append(path)
    return paths


def _samples(kept: pa.Table) -> Iterator[dict[str, Any]]:
    """One dictionary per kept image, with the lists of its kept pairs."""
    rows = kept.to_pylist()
    for (shard, key, offset, length), pairs in groupby(
        rows, lambda row: (row["shard"], row["key"], row["image_offset"], row["image_length"])
    ):
        group = list(pairs)
        yield {
            "place": (offset, length),
            "captions": [row["caption"] for row in group],
            "pair_ids": [row["pair_id"] for row in group],
            "rewards": [row["reward"] for row in group],
            "source": {"shard": shard, "key": key},
        }


def _write(
    tar: tarfile.TarFile, name: str, sample: dict[str, Any], shards: Mapping[str, Shard], members: MemberReader
) -> None:
    source = sample["source"]
    shard = shards.get(source["shard"])
    if shard is None:
        raise InputError(
            f"shard {source['shard']}",
            expected="to be among the shards given",
            found="kept pairs of it, but not the shard",
            remedy="Give every shard the dataset was filtered from.",
        )
    offset, length = sample["place"]
    image = members.read(shard, offset, length)
    facts = {key: value for key, value in sample.items() if key != "place"}
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
