"""Images of training data, read once, prepared once, and stacked into batches.

What belongs here: reading, decoding and the bounded cache between steps. What does not: which images
make a batch. Images that cannot be decoded are set aside and counted, never replaced.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.images import ImageRejected, decode
from compalign_dagster.reward.data import Place
from compalign_dagster.reward.model import Progress, RewardModel, no_progress

_ENCODE_BATCH = 32


@dataclass
class ImageLoader:
    """States or prepared images by place. At most `cache_bytes` are kept; the rest is read again."""

    shards: Mapping[str, Shard]
    prepare: Callable[[Image.Image], Tensor]
    cache_bytes: int
    encode: Callable[[Tensor], Tensor] | None = None  # of prepared images [B, ...], where that never changes
    side: int = 0  # of `decode`
    rejected: dict[Place, str] = field(default_factory=dict)
    _kept: dict[Place, Tensor] = field(default_factory=dict)
    _used: int = 0

    def usable(self, places: Iterable[Place], progress: Progress = no_progress, what: str = "images") -> set[Place]:
        """The places whose image decodes; the others are in `rejected` with their reason afterwards."""
        wanted = sorted(set(places))
        with MemberReader() as members:
            for start in range(0, len(wanted), _ENCODE_BATCH):
                group = wanted[start : start + _ENCODE_BATCH]
                self._read(
                    members, [place for place in group if place not in self._kept and place not in self.rejected]
                )
                done = start + len(group)
                if done % 512 == 0 or done == len(wanted):
                    progress(done, len(wanted), what)
        return set(wanted) - self.rejected.keys()

    def batch(self, places: Sequence[Place]) -> Tensor:
        """Prepared images stacked, in the order asked for. Raises `ImageRejected` for one not usable."""
        with MemberReader() as members:
            missing = sorted({place for place in places if place not in self._kept})
            read = self._read(members, missing, strict=True)
        return torch.stack([read[place] if place in read else self._kept[place] for place in places])

    def _read(self, members: MemberReader, places: Sequence[Place], *, strict: bool = False) -> dict[Place, Tensor]:
        """What was read, by place; kept too while there is room."""
        read: dict[Place, Tensor] = {}
        for place in places:
            shard, offset, length = place
            try:
                read[place] = self.prepare(decode(members.read(self.shards[shard], offset, length), side=self.side))
            except ImageRejected as error:
                if strict:
                    raise
                self.rejected[place] = error.reason
        if self.encode is not None and read:
            read = dict(zip(read, self.encode(torch.stack(list(read.values()))), strict=True))
        for place, value in read.items():
            size = value.numel() * value.element_size()
            if self._used + size <= self.cache_bytes:
                self._kept[place] = value
                self._used += size
        return read


def loader_for(model: RewardModel, shards: Mapping[str, Shard], cache_mib: int) -> ImageLoader:
    """A loader of what `model.encode_images` takes, or of its states where those never change."""
    if not model.images_are_frozen:
        return ImageLoader(shards, model.prepare, cache_mib << 20, side=model.image_side)

    def states(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return model.encode_images(batch.to(model.device)).cpu()

    return ImageLoader(shards, model.prepare, cache_mib << 20, encode=states, side=model.image_side)


def states_of(model: RewardModel, images: ImageLoader, places: Sequence[Place]) -> Tensor:
    """Image states [B, T, D] of these places, each encoded once."""
    batch = images.batch(places).to(model.device)
    return batch if model.images_are_frozen else model.encode_images(batch)
