"""The judged images: which there are in the shards, and which one a line means.

What belongs here: the lookup by digest, by shard and key, and by key. What does not: reading shards
(`crawl.index`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from compalign_dagster.annotation.schema import ImageReference
from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import Shard

Problem = tuple[str, str]  # reason and detail


@dataclass(frozen=True)
class FoundImage:
    """An image and where its bytes lie: the columns of `tables.IMAGES` without the split."""

    image_id: str
    shard: str
    key: str
    image_offset: int
    image_length: int


class JudgedImages:
    """Readable images by every name a line may use."""

    def __init__(self, images: Sequence[FoundImage], unreadable: dict[tuple[str, str], str]) -> None:
        ordered = sorted(images, key=lambda image: (image.shard, image.key))
        self._unreadable = unreadable  # (shard, key) -> why it was quarantined
        self._by_digest: dict[str, FoundImage] = {}
        self._by_key: dict[str, list[FoundImage]] = {}
        for image in ordered:
            self._by_digest.setdefault(image.image_id, image)
            self._by_key.setdefault(image.key, []).append(image)
        self._by_place = {(image.shard, image.key): image for image in ordered}

    @classmethod
    def in_shards(cls, shards: Sequence[Shard]) -> Self:
        """Index the shards; an image that several pairs share is there once."""
        columns = ["image_sha256", "shard", "key", "image_offset", "image_length"]
        images: set[FoundImage] = set()
        unreadable: dict[tuple[str, str], str] = {}
        for shard in shards:
            index = index_shard(shard)
            rows = index.pairs.select(columns).to_pylist()
            images |= {FoundImage(*(row[name] for name in columns)) for row in rows}
            for row in index.quarantine.select(["shard", "key", "reason"]).to_pylist():
                unreadable.setdefault((row["shard"], row["key"]), row["reason"])
        return cls(list(images), unreadable)

    def find(self, reference: ImageReference) -> FoundImage | Problem:
        """The image that is meant: by digest where given, else by shard and key, else by key alone."""
        if reference.sha256 is not None:
            found = self._by_digest.get(reference.sha256)
            return found or self._missing(reference, f"no image has sha256 {reference.sha256}")
        assert reference.key is not None  # the schema asks for one of both
        if reference.shard is not None:
            found = self._by_place.get((reference.shard, reference.key))
            return found or self._missing(reference, f"no image at {reference.shard} {reference.key}")
        candidates = self._by_key.get(reference.key, [])
        if len({image.image_id for image in candidates}) > 1:
            shards = ", ".join(image.shard for image in candidates[:3])
            return "image_ambiguous", f"key {reference.key!r} is in {len(candidates)} places: {shards}"
        return candidates[0] if candidates else self._missing(reference, f"no image has key {reference.key!r}")

    def _missing(self, reference: ImageReference, what: str) -> Problem:
        place = (reference.shard, reference.key)
        there = self._by_place.get(place) if reference.sha256 else None  # type: ignore[arg-type]
        if there is not None:
            return "image_changed", f"{what}; the one at {reference.shard} {reference.key} has {there.image_id}"
        why = self._unreadable.get(place)  # type: ignore[arg-type]
        return "image_not_found", f"{what}" + (f"; it was quarantined: {why}" if why else "")
