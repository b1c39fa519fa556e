"""Members sorted into samples: images verified, captions parsed, everything else counted.

Keys group over the whole shard, contiguous or not. Only facts are kept, never image bytes, so memory
grows with the number of samples and the length of their captions.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from compalign_dagster import images
from compalign_dagster.crawl import captions
from compalign_dagster.crawl.captions import Caption, MalformedError, Sidecar
from compalign_dagster.crawl.fingerprints import perceptual_hash
from compalign_dagster.crawl.reasons import Reason
from compalign_dagster.crawl.tar import Damage, Member
from compalign_dagster.images import ImageRejected

_IMAGES = frozenset(
    {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "jp2", "jxl", "ppm", "img"}
)
_LONGEST_NAME_BYTES = 1024
_ROW_BYTES = 512  # what a member or a caption costs in memory, beside its text
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Budgets:
    """The most that is read, per member, image, caption, sample and shard.

    `unpacked_bytes` is of a compressed shard; `kept_bytes` of the names, captions and URLs that are held at a time.
    """

    member_bytes: int = 64 << 20
    unpacked_bytes: int = 16 << 30
    image_pixels: int = images.MAX_PIXELS
    caption_bytes: int = 10_000
    members: int = 1_000_000
    json_bytes: int = 1 << 20
    sample_captions: int = 1_000
    kept_bytes: int = 512 << 20


@dataclass(frozen=True)
class Place:
    """A member: its name as text and where its data lies in the plain tar."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Picture:
    """A verified image."""

    place: Place
    digest: bytes
    facts: dict[str, Any]  # columns of PAIRS that the image alone decides


@dataclass
class Sample:
    """What the members of one key gave."""

    key: str
    image: Picture | None = None
    image_refused: bool = False
    text: Caption | None = None
    text_place: Place | None = None
    sidecar: Sidecar = field(default_factory=Sidecar)
    sidecar_place: Place | None = None
    extensions: set[str] = field(default_factory=set)
    repeated: bool = False  # a member came twice: what follows belongs to a second sample


@dataclass
class Sorted:
    """A shard's samples by key, its quarantined members, and how many members went where."""

    budgets: Budgets
    samples: dict[str, Sample] = field(default_factory=dict)
    quarantine: list[dict] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    kept: int = 0  # bytes, about, as `Budgets.kept_bytes` bounds them
    only: frozenset[str] | None = None  # keys of the samples to sort in; None for all

    def refuse(self, key: str | None, place: Place, reason: Reason, detail: str) -> None:
        """Quarantine one member."""
        self.counts["quarantined_members"] += 1
        row = {"key": key, "member": place.name, "unit": "member", "offset": place.offset}
        self.quarantine.append({**row, "reason": reason, "detail": detail})

    def add_damage(self, damage: Damage) -> None:
        """Quarantine what the archive lost; a damaged stretch counts as one member."""
        if damage.unit == "member":
            self.counts["members"] += 1
            self.counts["quarantined_members"] += 1
        name = None if damage.name is None else shown(damage.name)
        row = {"key": None, "member": name, "unit": damage.unit, "offset": damage.offset}
        self.quarantine.append({**row, "reason": damage.reason, "detail": damage.detail})

    def add(self, member: Member) -> None:
        """Sort one member in."""
        self.counts["members"] += 1
        place = Place(shown(member.name), member.offset, member.size)
        key, extension = split_name(member.name)
        role = "image" if extension in _IMAGES else extension
        others = self.only is not None and key not in self.only
        if others or member.kind == "folder" or role not in ("image", "txt", "json"):
            self.counts["ignored"] += 1
        elif (problem := name_problem(member.name)) is not None:
            self.refuse(None, place, Reason.NAME_UNSAFE, problem)
        else:
            self._add_to_sample(member, place, key, role, extension)

    def _add_to_sample(self, member: Member, place: Place, key: str, role: str, extension: str) -> None:
        sample = self.samples.setdefault(key, Sample(key))
        self.kept += _ROW_BYTES + 4 * len(member.name)  # a name is in its place, its key and the details of refusals
        sample.repeated |= extension in sample.extensions
        sample.extensions.add(extension)
        limit = self.budgets.json_bytes if role == "json" else self.budgets.member_bytes
        limit = min(limit, self.budgets.member_bytes)
        if sample.repeated:
            self.refuse(key, place, Reason.KEY_DUPLICATE, f"expected key {key!r} once, found it again")
        elif role == "image" and (sample.image is not None or sample.image_refused):
            self.refuse(key, place, Reason.IMAGE_EXTRA, f"expected one image of {key!r}, found another")
        elif member.kind != "file":
            self._refuse_of(sample, role, place, Reason.MEMBER_NOT_A_FILE, "expected a file, found a link or the like")
        elif member.size > limit:
            detail = f"expected at most {limit} bytes, found {member.size}"
            if role == "txt":
                self._add_text(sample, place, captions.too_long(member.size, self.budgets.caption_bytes))
            else:
                self._refuse_of(sample, role, place, Reason.MEMBER_TOO_LARGE, detail)
        elif role == "image":
            self._add_image(sample, place, member.read())
        elif role == "json":
            self._add_json(sample, place, member.read())
        elif member.size > self.budgets.caption_bytes:
            self._add_text(sample, place, captions.too_long(member.size, self.budgets.caption_bytes))
        else:
            self._add_text(sample, place, captions.from_text(member.read(), self.budgets.caption_bytes))

    def _refuse_of(self, sample: Sample, role: str, place: Place, reason: Reason, detail: str) -> None:
        sample.image_refused |= role == "image"
        self.refuse(sample.key, place, reason, detail)

    def _add_image(self, sample: Sample, place: Place, data: bytes) -> None:
        try:
            image = images.inspect(data, max_pixels=self.budgets.image_pixels)
        except ImageRejected as error:
            self._refuse_of(sample, "image", place, Reason(error.reason), error.detail)
            return
        digest = hashlib.sha256(data)
        facts = {
            "width": image.width,
            "height": image.height,
            "image_sha256": digest.hexdigest(),
            "image_format": image.format,
            "image_phash": perceptual_hash(image.thumbnail),
        }
        sample.image = Picture(place, digest.digest(), facts)

    def _add_json(self, sample: Sample, place: Place, data: bytes) -> None:
        try:
            sidecar = captions.from_json(data, self.budgets.caption_bytes, self.budgets.sample_captions)
        except MalformedError as error:
            self.refuse(sample.key, place, error.reason, error.detail)
            return
        found = [*sidecar.listed, *([sidecar.single] if sidecar.single else [])]
        self.kept += sum(_ROW_BYTES + len(caption.data) for caption in found) + len(sidecar.url or "")
        sample.sidecar, sample.sidecar_place = sidecar, place
        self.counts["used"] += 1

    def _add_text(self, sample: Sample, place: Place, caption: Caption) -> None:
        self.kept += len(caption.data)
        sample.text, sample.text_place = caption, place
        self.counts["used"] += 1


def split_name(name: bytes) -> tuple[str, str]:
    """Key and extension: the path up to the first dot of its last part, and what follows, lower case.

    Hidden files (`._0001.jpg`) and names without a dot have the extension "".
    """
    folder, slash, last = name.decode("utf-8", "backslashreplace").rpartition("/")
    stem, _, extension = last.partition(".")
    if not stem:
        return "", ""
    key = f"{folder}{slash}{stem}"
    while key.startswith("./"):
        key = key[2:]
    return key, extension.lower()


def name_problem(name: bytes) -> str | None:
    """Why a member's name is refused, or None. Names are only ever text here; readers may be less careful."""
    if len(name) > _LONGEST_NAME_BYTES:
        return f"expected at most {_LONGEST_NAME_BYTES} bytes, found {len(name)}"
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return "expected UTF-8, found other bytes"
    if text.startswith("/") or "\\" in text or ".." in text.split("/"):
        return "expected a relative path that does not climb, found one that is absolute or climbs"
    if _CONTROL.search(text):
        return "expected no control characters, found some"
    return None


def shown(name: bytes) -> str:
    """A member's name as text that Parquet and a terminal can hold."""
    if len(name) > _LONGEST_NAME_BYTES:
        name = name[:_LONGEST_NAME_BYTES] + b"..."
    return name.decode("utf-8", "backslashreplace")
