"""A pair as a page shows it: picture, caption, reward, note.

Captions come from the web and are hostile until shown otherwise: `readable` makes them inert as text
(the templates escape them as HTML), bounded, and honest about what was cut or replaced.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from compalign_dagster.pages.images import thumbnail_uri

GALLERY_LIMIT = 24
CAPTION_CHARACTERS = 180

_LINE_BREAKS = "\n\r\t\x0b\x0c\x85\u2028\u2029"


@dataclass(frozen=True)
class Card:
    """One pair for a gallery. `image` holds encoded bytes as found; empty when there is no picture."""

    image: bytes
    caption: str
    reward: float | None = None
    note: str = ""
    pair_id: str = ""
    link: str = ""  # where the picture leads; a path on the page server
    command: str = ""  # what tells more of the pair, on a page that no server shows


@dataclass(frozen=True)
class Readable:
    """Text that can be shown: `cut` characters of it were left out."""

    text: str
    cut: int


def readable(text: Any, limit: int = CAPTION_CHARACTERS) -> Readable:
    """At most `limit` characters of `text`, with everything invisible or direction-changing made visible.

    Line breaks become spaces. Control, format (bidirectional overrides, zero-width), surrogate and
    private characters become their code point in brackets, except the joiners inside emoji.
    """
    whole = str(text)
    shown = whole[:limit]
    return Readable("".join(map(_visible, shown)), len(whole) - len(shown))


def _visible(character: str) -> str:
    if character in _LINE_BREAKS:
        return " "
    if character == "\u200d" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co"):
        return character
    return f"[U+{ord(character):04X}]"


def gallery(cards: Iterable[Card], limit: int = GALLERY_LIMIT) -> dict[str, Any]:
    """What the gallery macro shows: at most `limit` cards with thumbnails, and how many were left out."""
    found = list(cards)
    return {
        "cards": [
            {
                "picture": thumbnail_uri(card.image),
                "caption": readable(card.caption),
                "reward": card.reward,
                "note": readable(card.note, 120).text,
                "pair_id": card.pair_id,
                "link": card.link,
                "command": card.command,
            }
            for card in found[:limit]
        ],
        "left_out": len(found) - len(found[:limit]),
    }


def largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Named counts, largest first, then by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
