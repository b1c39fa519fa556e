"""Kept pairs as one array of 128-bit identifiers, in the convention of DataComp's tools.

A one-dimensional .npy of dtype `u8,u8` (fields f0, f1): the leading and the trailing 16 hex digits of a
`pair_id` as numbers, sorted, each once. Exact duplicates share a `pair_id`, so that the array names pairs, not
places. What does not belong here: reading a version (`version.py`).
"""

import io
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

UIDS = np.dtype("<u8,<u8")

_BUCKETS = 256  # by the first byte: identifiers are digests, so they are of one size
_BYTES = 16


def as_uids(pair_ids: Sequence[str]) -> np.ndarray:
    """Identifiers of 32 hex digits as [n] UIDS, in their order; ValueError for any other."""
    if any(len(pair_id) != 2 * _BYTES for pair_id in pair_ids):
        raise ValueError("a pair_id has 32 hex digits")
    halves = np.frombuffer(bytes.fromhex("".join(pair_ids)), ">u8").astype("<u8")
    return halves.view(UIDS)


def as_pair_ids(uids: np.ndarray) -> list[str]:
    """What `as_uids` was made from."""
    return [f"{high:016x}{low:016x}" for high, low in uids.tolist()]


def write_uids(path: Path, parts: Iterable[Sequence[str]]) -> int:
    """Write the distinct identifiers of all parts, sorted, and return how many they are.

    Sorted by leading byte on disk first, so that memory holds one part and a 256th of all.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, ExitStack() as stack:
        buckets = [stack.enter_context(Path(folder, f"{at:02x}").open("w+b")) for at in range(_BUCKETS)]
        for part in parts:
            _spread(as_uids(part), buckets)
        count = sum(_sort(bucket) for bucket in buckets)
        with path.open("wb") as out:
            header = {"descr": np.lib.format.dtype_to_descr(UIDS), "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(out, header)
            for bucket in buckets:
                bucket.seek(0)
                out.write(bucket.read())
    return count


def _spread(uids: np.ndarray, buckets: Sequence[BinaryIO]) -> None:
    leading = (uids["f0"] >> np.uint64(56)).astype(np.int64)
    order = np.argsort(leading, kind="stable")
    ends = np.cumsum(np.bincount(leading, minlength=_BUCKETS))
    for bucket, part in zip(buckets, np.split(uids[order], ends[:-1]), strict=True):
        bucket.write(part.tobytes())


def _sort(bucket: BinaryIO) -> int:
    """Leave the distinct identifiers of a bucket in order; how many there are."""
    bucket.seek(0, io.SEEK_SET)
    found = np.frombuffer(bucket.read(), UIDS)
    found = found[np.lexsort((found["f1"], found["f0"]))]
    first = np.ones(len(found), bool)
    first[1:] = found[1:] != found[:-1]
    bucket.seek(0)
    bucket.truncate()
    bucket.write(found[first].tobytes())
    return int(first.sum())
