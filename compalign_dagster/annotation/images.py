"""The judged images: which there are in the shards, and which one a line means.

What belongs here: the lookup by digest, by shard and key, and by key. What does not: reading shards
(`crawl.index`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from compalign_dagster.annotation.schema import ImageReference
from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import Shard

Place = tuple[str, str]  # shard and key
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

    def __init__(self, images: Iterable[FoundImage], unreadable: Mapping[Place, str]) -> None:
        self._unreadable = unreadable  # why what lies there was quarantined
        self._by_digest: dict[str, FoundImage] = {}
        self._by_place: dict[Place, str] = {}
        self._by_key: dict[str, dict[str, str]] = {}  # key -> shard -> image_id
        for image in sorted(images, key=lambda image: (image.shard, image.key)):
            self._by_digest.setdefault(image.image_id, image)
            self._by_place[image.shard, image.key] = image.image_id
            self._by_key.setdefault(image.key, {})[image.shard] = image.image_id

    @classmethod
    def in_shards(cls, shards: Sequence[Shard]) -> Self:
        """Index the shards; an image that several pairs share is there once."""
        columns = ["image_sha256", "shard", "key", "image_offset", "image_length"]
        images: set[FoundImage] = set()
        unreadable: dict[Place, str] = {}
        for shard in shards:
            index = index_shard(shard)
            rows = index.pairs.select(columns).to_pylist()
            images |= {FoundImage(*(row[name] for name in columns)) for row in rows}
            for row in index.quarantine.select(["shard", "key", "reason"]).to_pylist():
                unreadable.setdefault((row["shard"], row["key"]), row["reason"])
        return cls(images, unreadable)

    def find(self, reference: ImageReference) -> FoundImage | Problem:
        """The image that is meant: by digest where given, else by shard and key, else by key alone.

        An image that lies in several places is always found in the first of them.
        """
        image_id: str | None
        if reference.sha256 is not None:
            image_id, what = reference.sha256, f"no image has sha256 {reference.sha256}"
        elif reference.shard is not None:
            image_id = self._by_place.get((reference.shard, reference.key or ""))
            what = f"no image at {reference.shard} {reference.key}"
        else:
            places = self._by_key.get(reference.key or "", {})
            if len(set(places.values())) > 1:
                return (
                    "image_ambiguous",
                    f"key {reference.key!r} is another image in each of {', '.join(places)}"[:300],
                )
            image_id, what = next(iter(places.values()), None), f"no image has key {reference.key!r}"
        found = self._by_digest.get(image_id) if image_id else None
        return found or self._missing(reference, what)

    def _missing(self, reference: ImageReference, what: str) -> Problem:
        place = (reference.shard or "", reference.key or "")
        if place in self._by_place:
            return "image_changed", f"{what}; at {' '.join(place)} lies {self._by_place[place]}"
        if place in self._unreadable:
            return "image_not_found", f"{what}; it was quarantined: {self._unreadable[place]}"
        return "image_not_found", what
