"""A shard's pairs as the images they show, and those images' bytes in few large reads.

What does not belong here: decoding, threads (`feed.py`).
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.errors import InputError

Place = tuple[int, int]  # offset and length in the plain tar, bytes

_RANGE_BYTES = 4 << 20  # read at once, at most, unless one image is larger
_GAP_BYTES = 64 << 10  # between two images that are still read at once: captions and other small members


@dataclass(frozen=True)
class Job:
    """The pairs (PAIRS) of one shard; image `places[i]` is shown by the pairs `rows[i]`, in order of first use."""

    shard: Shard
    pairs: pa.Table
    places: list[Place]
    rows: list[list[int]]

    @classmethod
    def of(cls, shard: Shard, pairs: pa.Table) -> "Job":
        """`InputError` for pairs of another shard."""
        others = sorted({str(name) for name in pairs["shard"].unique().to_pylist()} - {shard.name})
        if others:
            raise InputError(
                f"pairs to score from shard {shard.name}",
                expected="pairs of that shard alone",
                found=f"pairs of {others[0]}",
                remedy="Filter the pair index by shard first.",
            )
        by_image: dict[Place, list[int]] = {}
        offsets, lengths = pairs["image_offset"].to_numpy().tolist(), pairs["image_length"].to_numpy().tolist()
        for row, place in enumerate(zip(offsets, lengths, strict=True)):
            by_image.setdefault(place, []).append(row)
        return cls(shard, pairs, list(by_image), list(by_image.values()))


def images(members: MemberReader, job: Job) -> Generator[bytes]:
    """The bytes of each of the job's images, in order.

    Raises:
        InputError: when the shard is shorter than its index says.
        StoreError: when it cannot be read, or is another object than was indexed.
    """
    for group in [[place] for place in job.places] if job.shard.compressed else together(job.places):
        start, end = group[0][0], sum(group[-1])
        data = members.read(job.shard, start, end - start)
        for offset, length in group:
            yield data[offset - start : offset - start + length]


def together(places: Sequence[Place], *, most: int = _RANGE_BYTES, gap: int = _GAP_BYTES) -> Iterator[list[Place]]:
    """Neighbours of one read: in rising order, at most `gap` bytes apart, at most `most` bytes in all."""
    group: list[Place] = []
    for offset, length in places:
        if group:
            end = sum(group[-1])
            if not 0 <= offset - end <= gap or offset + length - group[0][0] > most:
                yield group
                group = []
        group.append((offset, length))
    if group:
        yield group
