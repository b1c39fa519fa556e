"""What each kind of image becomes: a test per row of docs/image-formats.md, and the page itself."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from compalign_dagster.images import ImageRejected, decode, inspect
from tests.conftest import ROOT
from tests.support.shard_builder import picture, png_bomb

PAGE = ROOT / "docs" / "image-formats.md"
HEAD = """# Image formats

What each kind of image becomes when it is read. The bytes decide, not the name. This page is written by
`tests/unit/test_image_formats.py`: run it with `UPDATE_DOCS=1` after a change.

Every image becomes upright RGB, 8 bits a channel, of its first frame. Width and height in the index are those of
the upright image. An image is decoded to its last byte before it becomes a pair; what is cut short is refused, not
padded. Budgets (`docs/settings.md`) are checked by its header, before any pixel is decoded; so are the scans of a
progressive JPEG, each of which goes over all its pixels.

What a decoder does not report cannot be seen: a JPEG whose coded data was damaged or lost but is followed by an end
marker, or a PNG whose compressed stream was closed too early, decodes, and what it lost is grey or black.

| image | what it becomes | `image_format` | width x height |
| --- | --- | --- | --- |
"""
REFUSED = """
## Refused

| image | reason |
| --- | --- |
"""
SIZE = (16, 8)
COLOUR, OTHER, WHITE = (200, 100, 50), (20, 60, 220), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """One kind of image: how it is made, and the colour that its middle must have."""

    said: str
    becomes: str
    make: Callable[[], bytes]
    colour: tuple[int, int, int]


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def plain(colour: tuple[int, ...] = COLOUR, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, SIZE, colour)


def png(depth: int, colour_type: int, row: bytes) -> bytes:
    """A PNG that Pillow cannot write: every line has these bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", *SIZE, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * SIZE[1])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", SIZE[::-1], COLOUR), "JPEG", exif=exif, quality=95)


def frames(form: str) -> bytes:
    return encoded(plain(), form, save_all=True, append_images=[plain(OTHER)], duration=100, lossless=True)


def palette(**options: object) -> bytes:
    return encoded(plain().quantize(4), "PNG", **options)


GREY = (128, 128, 128)
HALF = (228, 178, 152)  # the colour at half opacity over white
ROWS = [
    Row("JPEG", "as it is", lambda: encoded(plain(), "JPEG", quality=95), COLOUR),
    Row("JPEG, progressive", "as it is", lambda: encoded(plain(), "JPEG", quality=95, progressive=True), COLOUR),
    Row("JPEG, grey", "grey in all three channels", lambda: encoded(plain(128, "L"), "JPEG"), GREY),
    Row("JPEG, CMYK", "converted to RGB without a colour profile",
        lambda: encoded(plain().convert("CMYK"), "JPEG", quality=95), COLOUR),
    Row("JPEG with an EXIF orientation", "turned or mirrored upright", turned, COLOUR),
    Row("JPEG with further pictures (MPO)", "its first picture",
        lambda: encoded(plain(), "MPO", save_all=True, append_images=[plain(OTHER)], quality=95), COLOUR),
    Row("PNG", "as it is", lambda: encoded(plain(), "PNG"), COLOUR),
    Row("PNG, palette", "its colours", palette, COLOUR),
    Row("PNG, palette with a transparent colour", "that colour over white", lambda: palette(transparency=0), WHITE),
    Row("PNG with alpha", "over white", lambda: encoded(plain((*COLOUR, 128), "RGBA"), "PNG"), HALF),
    Row("PNG, grey with alpha", "over white", lambda: encoded(plain((0, 128), "LA"), "PNG"), (127, 127, 127)),
    Row("PNG, 1 bit", "black and white", lambda: encoded(plain(1, "1"), "PNG"), WHITE),
    Row("PNG, grey, 16 bits", "the upper 8 bits",
        lambda: encoded(Image.fromarray(np.full(SIZE[::-1], 0x8001, np.uint16)), "PNG"), GREY),
    Row("PNG, colour, 16 bits", "the upper 8 bits",
        lambda: png(16, 2, struct.pack(">HHH", *(value << 8 | 7 for value in COLOUR)) * SIZE[0]), COLOUR),
    Row("PNG, animated", "its first frame", lambda: frames("PNG"), COLOUR),
    Row("WebP", "as it is", lambda: encoded(plain(), "WEBP", quality=95), COLOUR),
    Row("WebP with alpha", "over white", lambda: encoded(plain((*COLOUR, 128), "RGBA"), "WEBP", lossless=True), HALF),
    Row("WebP, animated", "its first frame", lambda: frames("WEBP"), COLOUR),
    Row("GIF", "its colours", lambda: encoded(plain(), "GIF"), COLOUR),
    Row("GIF, animated", "its first frame", lambda: frames("GIF"), COLOUR),
    Row("BMP", "as it is", lambda: encoded(plain(), "BMP"), COLOUR),
]  # fmt: skip
CASES = [
    ("JPEG cut to a third", lambda: picture(3, (256, 256))[:3000], "image_truncated"),
    ("PNG cut in half", lambda: picture(3, (256, 256), "PNG")[:9000], "image_truncated"),
    ("PNG that announces 3.6 billion pixels", png_bomb, "image_too_large"),
    ("TIFF", lambda: encoded(plain(), "TIFF"), "image_format_unsupported"),
    ("AVIF, HEIC, JPEG XL, JPEG 2000", lambda: b"\0\0\0\x1cftypavif" + bytes(40), "image_format_unsupported"),
    ("SVG, PDF, PSD, ICO", lambda: b"<svg xmlns='x'/>", "image_format_unsupported"),
    ("an HTML page", lambda: b"<html>404 not found</html>", "image_undecodable"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.said)
def test_every_kind_of_image_becomes_what_the_page_says(row):
    data = row.make()
    image = decode(data)
    assert (image.mode, image.size) == ("RGB", SIZE)
    middle = image.getpixel((SIZE[0] // 2, SIZE[1] // 2))
    assert max(abs(found - wanted) for found, wanted in zip(middle, row.colour, strict=True)) <= 4, middle
    facts = inspect(data)
    assert (facts.width, facts.height) == SIZE
    grey = Image.new("RGB", (1, 1), row.colour).convert("L").getpixel((0, 0))
    assert abs(facts.thumbnail.getpixel((16, 16)) - grey) <= 4, "the fingerprint sees the same picture"


@pytest.mark.parametrize(("said", "make", "reason"), CASES, ids=[case[0] for case in CASES])
def test_what_is_not_read_is_refused_for_the_reason_the_page_gives(said, make, reason):
    for read in (decode, inspect):
        with pytest.raises(ImageRejected) as refusal:
            read(make())
        assert refusal.value.reason == reason


def test_the_page_has_a_line_for_every_row():
    lines = []
    for row in ROWS:
        facts = inspect(row.make())
        lines.append(f"| {row.said} | {row.becomes} | `{facts.format}` | {facts.width} x {facts.height} |")
    refused = [f"| {said} | `{reason}` |" for said, _, reason in CASES]
    found = HEAD + "\n".join([*lines, REFUSED.rstrip("\n"), *refused]) + "\n"
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(found)
    assert PAGE.read_text() == found, "run this test with UPDATE_DOCS=1 and review docs/image-formats.md"
