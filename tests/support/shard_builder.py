"""Tar shards for tests, good and hostile.

`good_shard(n)` is n whole samples; every other builder returns the bytes of one kind of trouble, and
`HOSTILE` names them all. Images are small and deterministic: equal arguments give equal bytes.
"""

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from compalign_dagster.crawl.shards import Shard
from compalign_dagster.store import LocalStore

Entry = tuple[str, bytes]


def picture(seed: int = 0, size: tuple[int, int] = (32, 24), form: str = "JPEG", **options: object) -> bytes:
    """A small image whose pixels depend on the seed."""
    image = Image.new("RGB", size)
    width, height = size
    image.putdata(
        [((x * 7 + seed * 31) % 256, (y * 11 + seed * 17) % 256, (x * y + seed) % 256)
         for y in range(height) for x in range(width)]
    )  # fmt: skip
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def sample(key: str, caption: str = "a red ball", *, seed: int = 0, **fields: object) -> list[Entry]:
    """One img2dataset-style sample: <key>.jpg, <key>.txt, <key>.json."""
    record = {"key": key, "caption": caption, "url": f"https://example.org/{key}.jpg", "status": "success"}
    return [
        (f"{key}.jpg", picture(seed)),
        (f"{key}.txt", caption.encode()),
        (f"{key}.json", json.dumps({**record, **fields}).encode()),
    ]


def samples(count: int, start: int = 0) -> list[Entry]:
    """Whole samples with distinct images and captions."""
    return [entry for at in range(start, start + count) for entry in sample(f"{at:05d}", f"thing {at}", seed=at)]


def tar(entries: Iterable[Entry], *, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A plain tar of these members, in this order, names taken as they are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in entries:
            archive.addfile(tarfile_info(name, len(data)), io.BytesIO(data))
    return out.getvalue()


def tarfile_info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """A header; `name` is written as it is, climbing or absolute or with line breaks."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def place(folder: Path, data: bytes, name: str = "cc3m/00000.tar") -> Shard:
    """Write a shard below a landing folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Shard(name, LocalStore(folder), name)


def good_shard(count: int = 5) -> bytes:
    return tar(samples(count))


def header_offsets(data: bytes) -> list[int]:
    """Where the headers of a sound tar start."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [member.offset for member in archive]


def truncated_tar(count: int = 10, *, members_whole: int = 15) -> bytes:
    """Cut in the middle of the data of a member."""
    data = good_shard(count)
    return data[: header_offsets(data)[members_whole] + 512 + 5]


def damaged_header(count: int = 10, *, member: int = 15) -> bytes:
    """One header overwritten, its data left in place."""
    data = bytearray(good_shard(count))
    at = header_offsets(bytes(data))[member]
    data[at : at + 512] = b"\xa5" * 512
    return bytes(data)


def zeroed_header(count: int = 10, *, member: int = 15) -> bytes:
    """One header lost to a hole of zeros."""
    data = bytearray(good_shard(count))
    at = header_offsets(bytes(data))[member]
    data[at : at + 512] = bytes(512)
    return bytes(data)


def lying_size(count: int = 4, *, member: int = 3) -> bytes:
    """One header with a sound checksum that claims 8 EiB."""
    data = bytearray(good_shard(count))
    at = header_offsets(bytes(data))[member]
    header = data[at : at + 512]
    header[124:136] = b"\x80" + (1 << 63).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at : at + 512] = header
    return bytes(data)


def joined_archives() -> bytes:
    """Two archives in one file, the end marker of the first between them."""
    return tar(samples(2)) + tar(samples(2, start=2))


def without_end_marker() -> bytes:
    """Cut after the last member, before tar's end marker."""
    return good_shard(3).rstrip(b"\0").ljust(512 * (len(good_shard(3).rstrip(b"\0")) // 512 + 1), b"\0")


def with_entry(*entries: Entry, good: int = 2) -> bytes:
    """Some good samples with these members in the middle."""
    return tar([*samples(good), *entries, *samples(1, start=good)])


def image_is_text() -> bytes:
    """An HTML page called .jpg."""
    return with_entry(("bad.jpg", b"<html>404 not found</html>"), ("bad.txt", b"a caption"))


def cut_image() -> bytes:
    """A JPEG cut to a third of its bytes."""
    whole = picture(3, (256, 256))
    return with_entry(("bad.jpg", whole[: len(whole) // 3]), ("bad.txt", b"a caption"))


def png_bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few dozen bytes that announces billions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def image_bomb() -> bytes:
    """A PNG of 1 kB that announces 3.6 billion pixels."""
    return with_entry(("bad.png", png_bomb()), ("bad.txt", b"a caption"))


def missing_caption() -> bytes:
    """An image without a caption."""
    return with_entry(("bad.jpg", picture(9)))


def null_caption() -> bytes:
    """`null` for a caption."""
    return with_entry(("bad.jpg", picture(9)), ("bad.json", b'{"caption": null}'))


def empty_caption() -> bytes:
    """A caption of white space."""
    return with_entry(("bad.jpg", picture(9)), ("bad.txt", b" \n\t"))


def huge_caption() -> bytes:
    """A caption of a million bytes."""
    return with_entry(("bad.jpg", picture(9)), ("bad.txt", b"x" * 1_000_000))


def text_not_utf8() -> bytes:
    """A .txt in Latin-1."""
    return with_entry(("bad.jpg", picture(9)), ("bad.txt", b"caf\xe9"))


def json_not_utf8() -> bytes:
    """A .json in Latin-1 beside a good .txt."""
    return with_entry(("bad.jpg", picture(9)), ("bad.txt", b"still good"), ("bad.json", b'{"caption": "caf\xe9"}'))


def json_nested_deeply() -> bytes:
    """A .json of 200,000 open brackets beside a good .txt."""
    return with_entry(("bad.jpg", picture(9)), ("bad.txt", b"still good"), ("bad.json", b"[" * 200_000))


def half_a_surrogate() -> bytes:
    """A caption with half of a surrogate pair."""
    return with_entry(("bad.jpg", picture(9)), ("bad.json", rb'{"caption": "\ud800"}'))


def caption_not_text() -> bytes:
    """An object for a caption."""
    return with_entry(("bad.jpg", picture(9)), ("bad.json", b'{"caption": {"en": "a ball"}}'))


def captions_with_nulls() -> bytes:
    """A list of captions with a null, a number and an empty one among them."""
    listed = json.dumps({"captions": ["first", None, "third", 4, ""]}).encode()
    return with_entry(("bad.jpg", picture(9)), ("bad.json", listed))


def too_many_captions() -> bytes:
    """A list of 5,000 captions beside a good .txt."""
    listed = json.dumps({"captions": ["x"] * 5000}).encode()
    return with_entry(("bad.jpg", picture(9)), ("bad.json", listed), ("bad.txt", b"still good"))


def duplicate_keys() -> bytes:
    """The key of the first sample again, with another image and another caption."""
    return tar([*samples(2), *sample("00000", "another thing", seed=99), *samples(1, start=2)])


def duplicate_key_after_half_a_sample() -> bytes:
    """An image without a caption, then a whole sample of the same key: nothing may pair across them."""
    return tar([("a.jpg", picture(1)), ("a.jpg", picture(2)), ("a.txt", b"of the second"), *samples(1)])


def interleaved() -> bytes:
    """All images first, then all captions."""
    every = samples(3)
    return tar([*every[0::3], *every[1::3], *every[2::3]])


def orphan_captions() -> bytes:
    """Captions without an image: a .txt, and a .json with two."""
    return with_entry(("bad.txt", b"no image"), ("bad2.json", b'{"captions": ["a", "b"]}'))


def ignored_members() -> bytes:
    """A label, a README and a resource fork of macOS."""
    return with_entry(("00000.cls", b"7"), ("README", b"hello"), ("._00001.jpg", b"resource fork"))


def climbing_names() -> bytes:
    """Names that are absolute, climb, or hold a line break."""
    names = ("../../up.jpg", "/etc/passwd.jpg", "line\nbreak.jpg", "a\\b.txt", "x/../../y.json")
    return with_entry(*((name, picture(5)) for name in names))


def links() -> bytes:
    """Links and a device under names of images."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for at, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)):
            info = tarfile_info(f"link{at}.jpg", kind=kind)
            info.linkname = "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile_info("folder.jpg", kind=tarfile.DIRTYPE))
        for name, data in samples(2):
            archive.addfile(tarfile_info(name, len(data)), io.BytesIO(data))
    return out.getvalue()


def pickle_member() -> bytes:
    """A pickle that would run a command, and a .pyd."""
    return with_entry(("bad.pkl", b"cos\nsystem\n(S'touch /tmp/owned'\ntR."), ("bad.pyd", b"x"))


def empty_file() -> bytes:
    """No bytes at all."""
    return b""


def empty_shard() -> bytes:
    """A tar without members."""
    return tar([])


def gzipped() -> bytes:
    """A gzip of a tar, called .tar."""
    return gzip.compress(good_shard(2), mtime=0)


HOSTILE: dict[str, Callable[[], bytes]] = {
    builder.__name__: builder
    for builder in (
        truncated_tar, damaged_header, zeroed_header, lying_size, joined_archives, without_end_marker,
        image_is_text, cut_image, image_bomb, missing_caption, null_caption, empty_caption, huge_caption,
        text_not_utf8, json_not_utf8, json_nested_deeply, half_a_surrogate, caption_not_text,
        captions_with_nulls, too_many_captions, duplicate_keys, duplicate_key_after_half_a_sample,
        interleaved, orphan_captions, ignored_members, climbing_names, links, pickle_member, empty_file,
        empty_shard, gzipped,
    )
}  # fmt: skip
