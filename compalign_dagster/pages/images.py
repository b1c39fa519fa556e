"""Small pictures for pages and events: thumbnails as data URIs, contact sheets.

What does not belong here: reading shards. Bytes that cannot be decoded give no picture, not an error:
why they cannot is the quarantine's to say.
"""

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from compalign_dagster.images import ImageRejected, decode

THUMBNAIL_SIDE = 256  # pixels of the longer side: sharp on a dense screen at half the size
THUMBNAIL_BYTES = 14_000
SHEET_BYTES = 60_000  # Dagster keeps it inside an event row

_QUALITIES = (82, 70, 58, 46, 34, 22)
_SHEET_GAP = 4
_SHEET_TILE = 112
_SHEET_IMAGES = 64
_SHEET_BACKGROUND = (128, 132, 138)  # a mid grey: neither scheme of the Dagster UI swallows it


def thumbnail_uri(data: bytes, side: int = THUMBNAIL_SIDE, limit: int = THUMBNAIL_BYTES) -> str | None:
    """A JPEG data URI of at most `limit` encoded image bytes, or None when `data` is no usable image."""
    try:
        image = decode(data)
    except ImageRejected:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return f"data:image/jpeg;base64,{base64.b64encode(_small_jpeg(image, limit)).decode()}"


def contact_sheet(images: Sequence[Image.Image | bytes], columns: int = 8) -> bytes:
    """A JPEG of at most 60 kB with the images as square tiles, row by row; at most 64 of them.

    Takes decoded images or encoded bytes; what cannot be decoded is a crossed tile.
    """
    shown = list(images)[:_SHEET_IMAGES]
    columns = max(1, min(columns, len(shown) or 1))
    rows = max(1, -(-len(shown) // columns))
    step = _SHEET_TILE + _SHEET_GAP
    size = (columns * step + _SHEET_GAP, rows * step + _SHEET_GAP)
    sheet = Image.new("RGB", size, _SHEET_BACKGROUND)
    for at, image in enumerate(shown):
        corner = (_SHEET_GAP + at % columns * step, _SHEET_GAP + at // columns * step)
        sheet.paste(_tile(image), corner)
    return _small_jpeg(sheet, SHEET_BYTES)


def _tile(image: Image.Image | bytes) -> Image.Image:
    """The whole image inside a square: cropping could hide what the caption is about."""
    tile = Image.new("RGB", (_SHEET_TILE, _SHEET_TILE), (236, 238, 240))
    if isinstance(image, bytes):
        try:
            image = decode(image)
        except ImageRejected:
            pen = ImageDraw.Draw(tile)
            last = _SHEET_TILE - 1
            pen.line((0, 0, last, last), fill=(120, 120, 120))
            pen.line((0, last, last, 0), fill=(120, 120, 120))
            return tile
    small = image.convert("RGB")
    small.thumbnail(tile.size, Image.Resampling.LANCZOS)
    tile.paste(small, ((tile.width - small.width) // 2, (tile.height - small.height) // 2))
    return tile


def _small_jpeg(image: Image.Image, limit: int) -> bytes:
    """The best JPEG that fits: first less quality, then fewer pixels."""
    image = image.convert("RGB")
    while True:
        for quality in _QUALITIES:
            out = io.BytesIO()
            image.save(out, "JPEG", quality=quality, optimize=True)
            if out.tell() <= limit:
                return out.getvalue()
        smaller = (max(1, image.width * 2 // 3), max(1, image.height * 2 // 3))
        image = image.resize(smaller, Image.Resampling.LANCZOS)
