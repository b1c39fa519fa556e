"""Which 64-bit hashes hang together by small Hamming distances: exact, without comparing every pair.

Two hashes that differ in at most `d` bits agree in at least `k` of `d + k` bands of bits, whatever the
bands are. So only hashes that share some choice of `k` bands are compared. Popular bands (blank images,
thumbnails of one site) are settled without comparing their members pairwise: most of them hang together
already, and the others are cut by further bands of the bits in which they differ.

What belongs here: arithmetic on arrays. What does not: where hashes come from and what a group means.
"""

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numpy as np

BITS = 64
_RUN = 256  # hashes that share bands and are compared pairwise without further thought
_PART = 4_000_000  # hashes sorted at a time
_BLOCK = 4_000_000  # comparisons at a time
_PIVOTS = 24  # members of a popular band that are compared with all others
_MOST_BANDS = 4  # k: with more, there are more choices of bands than their shorter runs are worth


def components(hashes: np.ndarray, distance: int) -> np.ndarray:
    """For each hash the index of its component's representative, int64 [n].

    Hashes are connected when a chain of hashes leads from one to the other whose steps differ in at most
    `distance` bits. `hashes` are distinct, uint64 [n]. Memory: at most
    some 45 bytes a hash.

    Raises:
        ValueError: for a distance below 0 or above 16, or hashes that are not uint64.
    """
    if not 0 <= distance <= 16 or hashes.dtype != np.uint64:
        raise ValueError(f"expected uint64 hashes and a distance of 0 to 16, found {hashes.dtype} and {distance}")
    forest = Forest(len(hashes))
    if distance and len(hashes) > 1:
        search = _Search(hashes, distance, forest)
        for mask in masks((1 << BITS) - 1, distance, len(hashes)):
            for members in search.parts(mask):
                search.compare_where_equal(members, mask)
    return forest.find(np.arange(len(hashes)))


def masks(bits: int, distance: int, count: int) -> list[int]:
    """Choices of bands of the set `bits`: `count` hashes that differ in `distance` of them agree under one mask.

    The number of bands is the one with the least expected work, were the hashes random.
    """
    places = [1 << at for at in range(BITS) if bits >> at & 1]

    def work(agreeing: int) -> float:
        shared = len(places) * agreeing / (distance + agreeing)
        return comb(distance + agreeing, agreeing) * (4 * count + count * count / 2**shared)

    agreeing = min(range(1, _MOST_BANDS + 1), key=work)
    bands = [sum(places[at :: distance + agreeing]) for at in range(distance + agreeing)]
    return [sum(choice) for choice in combinations(bands, agreeing)]


class Forest:
    """Disjoint sets of 0 .. n - 1 as an array of parents; a root is its own parent and the least of its set."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size)

    def find(self, members: np.ndarray) -> np.ndarray:
        """The roots of these members."""
        roots = self.parent[members]
        while not np.array_equal(higher := self.parent[roots], roots):
            roots = higher
        self.parent[members] = roots
        return roots

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Unite the sets of left[i] and right[i], for every i."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not len(left):
            return
        left, right = self.find(left), self.find(right)
        apart = left != right
        if not apart.any():
            return
        roots, ends = np.unique(np.concatenate([left[apart], right[apart]]), return_inverse=True)
        edges = ends.reshape(2, -1)
        graph = coo_array((np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), shape=(len(roots),) * 2)
        _, labels = connected_components(graph, directed=False)
        _, least = np.unique(labels, return_index=True)  # roots are sorted: the first is the least
        self.parent[roots] = roots[least][labels]


class _Search:
    """One search: the hashes, the distance, and what is known to hang together so far."""

    def __init__(self, hashes: np.ndarray, distance: int, forest: Forest) -> None:
        self.hashes, self.distance, self.forest = hashes, distance, forest

    def parts(self, mask: int) -> Iterator[np.ndarray]:
        """All members in parts of bounded size; members that agree under the mask are in one part."""
        count = -(-len(self.hashes) // _PART)
        if count == 1:
            yield np.arange(len(self.hashes))
            return
        for part in range(count):
            yield np.concatenate(
                [
                    start + np.flatnonzero(_mixed(self.hashes[start : start + _PART] & np.uint64(mask)) % count == part)
                    for start in range(0, len(self.hashes), _PART)
                ]
            )

    def compare_where_equal(self, members: np.ndarray, mask: int) -> None:
        """Join members that agree under the mask and differ in at most `distance` bits."""
        keys = self.hashes[members] & np.uint64(mask)
        order = np.argsort(keys)
        keys, members = keys[order], members[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        lengths = np.diff(np.append(starts, len(keys)))
        at = np.arange(len(keys))[np.repeat(lengths <= _RUN, lengths)]
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for step in range(1, _RUN):
            at = at[at + step < len(keys)]
            at = at[keys[at] == keys[at + step]]
            if not len(at):
                break
            near = self._near(members[at], members[at + step])
            found.append((members[at[near]], members[at[near] + step]))
            if step % 64 == 0:
                self._join(found)
        self._join(found)
        for start, length in zip(starts[lengths > _RUN], lengths[lengths > _RUN], strict=True):
            self._settle(members[start : start + length])

    def _join_near(self, left: np.ndarray, right: np.ndarray) -> None:
        near = self._near(left, right)
        self.forest.join(left[near], right[near])

    def _near(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.bitwise_count(self.hashes[left] ^ self.hashes[right]) <= self.distance)

    def _join(self, found: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Join pairs found in several comparisons at once, and forget them."""
        if found:
            self.forest.join(np.concatenate([left for left, _ in found]), np.concatenate([right for _, right in found]))
            found.clear()

    def _settle(self, members: np.ndarray) -> None:
        """Join what is near among many members that agree under some mask."""
        bits = int(np.bitwise_or.reduce(self.hashes[members] ^ self.hashes[members[0]]))
        if bits.bit_count() <= self.distance:
            self.forest.join(members[1:], members[:-1])
            return
        for _ in range(_PIVOTS):
            rest = self._outside_the_largest(members)
            if not len(rest):
                return
            self._join_near(members, np.full(len(members), rest[len(rest) // 2]))
        rest = self._outside_the_largest(members)
        further = masks(bits, self.distance, len(members))
        shared = min(mask.bit_count() for mask in further)
        if shared == 0 or len(rest) <= len(further) * max(4.0, len(members) / 2**shared):
            step = max(1, _BLOCK // len(members))
            for start in range(0, len(rest), step):
                some = rest[start : start + step]
                self._join_near(np.repeat(some, len(members)), np.tile(members, len(some)))
            return
        for mask in further:
            self.compare_where_equal(members, mask)

    def _outside_the_largest(self, members: np.ndarray) -> np.ndarray:
        roots = self.forest.find(members)
        found, counts = np.unique(roots, return_counts=True)
        return members[roots != found[counts.argmax()]]


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Keys spread evenly, so that parts are of similar size (Fibonacci hashing)."""
    return (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
