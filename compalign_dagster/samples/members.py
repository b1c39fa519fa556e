"""A sample's members in a tar, as img2dataset lays them out, with nothing of this machine in them.

What belongs here: bytes of members and tars. What does not: what the captions say.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compalign_dagster.samples.scenes import SIDE
from compalign_dagster.versions import digest_bytes

_HOSTS = ("images.example.invalid", "cdn.example.invalid", "shop.example.invalid", "photos.example.invalid")


@dataclass(frozen=True)
class Sample:
    """One sample. A caption of None has no text member; bytes are written as they are.

    `facts` are laid over the .json's usual keys.
    """

    image: bytes
    caption: str | bytes | None
    facts: dict[str, Any] = field(default_factory=dict)

    def members(self, key: str) -> Iterable[tuple[str, bytes]]:
        """Names and bytes, in img2dataset's order."""
        yield f"{key}.jpg", self.image
        text = None
        if isinstance(self.caption, bytes):
            yield f"{key}.txt", self.caption
        elif self.caption is not None:
            text = self.caption
            yield f"{key}.txt", text.encode()
        digest = digest_bytes(self.image)
        usual = {
            "caption": text,
            "url": f"https://{_HOSTS[int(digest[0], 16) % len(_HOSTS)]}/{digest[1:3]}/{digest[3:15]}.jpg",
            "key": key,
            "status": "success",
            "error_message": None,
            "width": SIDE,
            "height": SIDE,
            "original_width": SIDE,
            "original_height": SIDE,
            "exif": "{}",
            "sha256": digest,
        }
        yield f"{key}.json", json.dumps(usual | self.facts, ensure_ascii=False).encode()


def write_shard(path: Path, samples: Iterable[tuple[str, Sample]]) -> None:
    """Write samples and their keys as one tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, sample in samples:
            for name, data in sample.members(key):
                member = tarfile.TarInfo(name)  # its defaults carry no time, owner or mode of this machine
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
