"""Images from outside, decoded within bounds: format and pixel budget before pixels, all pixels or none.

What belongs here: bytes to a verified RGB image. What does not: resizing and normalising for a network.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, UnidentifiedImageError

from compalign_dagster.errors import CompalignError

MAX_PIXELS = 89_478_485
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_OTHERS = (  # what files called .jpg on the web also are: offset, magic, name
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\x01\0", "ICO"),
    (0, b"<svg", "SVG"),
    (0, b"8BPS", "PSD"),
    (0, b"%PDF", "PDF"),
)
_THUMBNAIL = (32, 32)
_DRAFT = (64, 64)  # a JPEG is scaled down while it is decoded, to no less than this
_SPARE = 2  # what is scaled while it is decoded, by a plain filter, stays this much larger than asked for
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SCANS = 20  # of a progressive JPEG as large as the budget; each goes over all pixels again, few bytes make one
_NO_MEMORY = "out of memory"  # as Pillow's decoders say it, in an OSError
_TRUNCATED_WORDS = ("truncated", "unexpected end", "not enough data", "premature")

# Of damaged metadata, and of sizes that are checked here. Set once for the process: `warnings.catch_warnings` around
# each image would leave filters of one decoding thread behind in another.
warnings.filterwarnings("ignore", module=r"PIL\.")

log = logging.getLogger(__name__)


class ImageRejected(Exception):  # noqa: N818 - what happened to an image, not a fault of ours
    """Bytes that are not a whole image within the budget.

    `reason` is `image_undecodable`, `image_truncated`, `image_too_large` or `image_format_unsupported`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ImageFacts:
    """What a wholly decodable image is. Width and height are upright, in pixels."""

    format: str
    width: int
    height: int
    thumbnail: Image.Image = field(compare=False, repr=False)
    """Upright, grey, 32 x 32 pixels whatever the sides were, transparency over white."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, side: int = 0) -> Image.Image:
    """The whole image as upright RGB; the first frame of an animation, transparency over white.

    With a `side`, a JPEG may come out smaller, by 2, 4 or 8, but no side below twice `side` pixels: it costs a
    fraction, and whoever makes a square of `side` pixels of it scales down further by a good filter.

    Raises:
        ImageRejected: when the bytes are no supported image, are cut short, or exceed `max_pixels`.
        CompalignError: when memory runs out, which is no fault of the image.
    """
    with _opened(data, max_pixels) as image:
        orientation = _orientation(image)
        if side:
            image.draft(None, (_SPARE * side, _SPARE * side))
        image.load()
        upright = _rgb(image)
        return upright.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else upright


def inspect(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Verify that `decode` would succeed, at less cost: JPEGs are read to the end, but small and grey.

    Raises:
        ImageRejected: as `decode`.
    """
    with _opened(data, max_pixels) as image:
        width, height = image.size
        orientation = _orientation(image)
        if orientation >= 5:  # the four that swap the sides
            width, height = height, width
        form = image.format or "unknown"
        image.draft("L", _DRAFT)
        image.load()
        return ImageFacts(form, width, height, _thumbnail(image, orientation))


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """An opened image within the budget; whatever its codec raises becomes `ImageRejected`."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageRejected(
                    "image_too_large", f"expected at most {max_pixels} pixels, found {width} x {height}"
                )
            _refuse_scans(image, data, _SCANS * max_pixels)
            yield image
    except ImageRejected:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejected("image_too_large", f"expected at most {max_pixels} pixels, found: {error}") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Exception as error:  # codecs raise anything on hostile bytes; the caller gets all of it
        if isinstance(error, MemoryError) or _NO_MEMORY in str(error):
            raise no_memory(data) from error
        raise _undecodable(data, error) from error


def no_memory(data: bytes) -> CompalignError:
    """The error for an image, undecoded, for which memory ran out: at another time the same bytes may decode."""
    return CompalignError(
        f"image of {len(data)} bytes",
        expected="memory to decode it",
        found="too little",
        remedy="Nothing is lost: free memory, or lower COMPALIGN_IMAGE_PIXELS, and run again.",
    )


def _refuse_scans(image: Image.Image, data: bytes, most: int) -> None:
    """Refuse a JPEG whose scans, counted by their markers, go over more than `most` pixels in all."""
    if image.format in ("JPEG", "MPO") and (work := data.count(b"\xff\xda") * image.width * image.height) > most:
        raise ImageRejected("image_too_large", f"expected scans of at most {most} pixels in all, found {work}")


def _unidentified(data: bytes) -> ImageRejected:
    supported = ", ".join(_FORMATS)
    for offset, magic, name in _OTHERS:
        if data[offset : offset + len(magic)] == magic:
            return ImageRejected("image_format_unsupported", f"expected {supported}, found {name}")
    return ImageRejected("image_undecodable", f"expected {supported}, found {len(data)} bytes starting {data[:8]!r}")


def _undecodable(data: bytes, error: Exception) -> ImageRejected:
    text = str(error).lower()
    short_riff = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    if short_riff or isinstance(error, EOFError) or any(word in text for word in _TRUNCATED_WORDS):
        return ImageRejected("image_truncated", f"expected a whole image, found {len(data)} bytes: {error}")
    return ImageRejected("image_undecodable", f"expected a whole image, found {type(error).__name__}: {error}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Damaged metadata does not cost the image: it counts as upright."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception as error:
        log.debug("orientation unreadable, taken as upright: %r", error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: scale, where Pillow's own conversion clips
        values = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _thumbnail(image: Image.Image, orientation: int) -> Image.Image:
    plain = image.mode in ("L", "RGB", "CMYK") and not image.has_transparency_data
    small = (image if plain else _rgb(image)).resize(_THUMBNAIL, Image.Resampling.BOX)
    grey = small.convert("L")
    return grey.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else grey
