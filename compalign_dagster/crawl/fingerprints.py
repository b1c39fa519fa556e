"""Fingerprints that are taken while a shard is read: of an image's looks, of a caption's shape.

What belongs here: cheap functions of one image or one caption. What does not: comparing them, or any
judgement of what is good. Everything is exact integer arithmetic or counting, so that it is the same on
every machine.
"""

import math
import unicodedata
from dataclasses import dataclass

import numpy as np
from PIL import Image

THUMBNAIL = (32, 32)
_LOW = 8  # frequencies kept in each direction
_SCALE = 1 << 12
_COSINES = np.array(
    [
        [round(_SCALE * math.cos(math.pi * (2 * x + 1) * u / (2 * THUMBNAIL[0]))) for x in range(THUMBNAIL[0])]
        for u in range(_LOW)
    ],
    np.int64,
)


def perceptual_hash(thumbnail: Image.Image) -> str:
    """16 hex digits, 64 bits, of a grey image of 32 x 32: images that look alike differ in few bits.

    The "pHash" of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
    section 3.2.1: the 8 x 8 lowest frequencies of the discrete cosine transform (type II), each compared
    with their median. The transform is in whole numbers, so that no machine rounds differently. The median
    leaves out the mean brightness, whose own bit is thus nearly always set.
    """
    values = np.asarray(thumbnail, np.int64)
    frequencies = (_COSINES @ values @ _COSINES.T).reshape(-1)
    bits = frequencies > np.sort(frequencies[1:])[(len(frequencies) - 1) // 2]
    return np.packbits(bits).tobytes().hex()


@dataclass(frozen=True)
class CaptionShape:
    """Counts of a caption. Shares are between 0 and 1."""

    characters: int  # Unicode code points
    words: int  # runs of anything but white space
    repetition: float  # share of words that came before in the same caption, ignoring case
    non_letters: (
        float  # share of characters other than white space that are no letters, nor marks on them, of any script
    )


def caption_shape(text: str) -> CaptionShape:
    """The shape of a caption that is not all white space."""
    words = text.casefold().split()
    visible = sum(map(len, text.split()))
    letters = sum(char.isalpha() or unicodedata.category(char).startswith("M") for char in text)
    return CaptionShape(
        characters=len(text),
        words=len(words),
        repetition=1 - len(set(words)) / len(words),
        non_letters=1 - letters / visible,
    )
