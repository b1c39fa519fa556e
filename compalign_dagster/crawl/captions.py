"""Captions as a sample's `.txt` and `.json` give them, each whole or with the reason it is not.

What belongs here: bytes of one caption file to captions, and which file speaks. What does not:
members and images (`samples.py`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compalign_dagster.crawl.reasons import Reason


@dataclass(frozen=True)
class Caption:
    """One caption found: its text and its bytes as found, or why it was refused."""

    text: str | None
    data: bytes
    refusal: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class Sidecar:
    """What a sample's `.json` says: its `captions` list, its single `caption`, its `url`."""

    listed: tuple[Caption, ...] = ()
    single: Caption | None = None
    url: str | None = None


class MalformedError(Exception):
    """A `.json` that cannot be used as a whole."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def refused(reason: Reason, detail: str) -> Caption:
    """A caption that was found and cannot be used."""
    return Caption(None, b"", reason, detail)


def too_long(size: int, budget: int) -> Caption:
    """A caption that is longer than the budget; it need not have been read."""
    return refused(Reason.CAPTION_TOO_LONG, f"expected at most {budget} bytes, found {size}")


def from_text(data: bytes, budget: int) -> Caption:
    """The one caption of a `.txt`."""
    if len(data) > budget:
        return too_long(len(data), budget)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {data[error.start]:#04x} at {error.start}"
        return refused(Reason.CAPTION_NOT_UTF8, f"expected UTF-8, found {found}")
    if not text.strip():
        return refused(Reason.CAPTION_EMPTY, f"expected text, found {len(data)} bytes of white space")
    return Caption(text, data)


def from_json(data: bytes, budget: int, most: int) -> Sidecar:
    """The captions and the URL of a `.json`.

    Raises:
        MalformedError: when it is no JSON object in UTF-8, or `captions` is no list of at most `most`.
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedError(Reason.JSON_MALFORMED, f"expected a JSON object, found: {error}") from error
    if not isinstance(value, dict):
        raise MalformedError(Reason.JSON_MALFORMED, f"expected a JSON object, found {type(value).__name__}")
    listed = value.get("captions")
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        found = type(listed).__name__
        raise MalformedError(Reason.JSON_MALFORMED, f"expected `captions` to be a list, found {found}")
    if len(listed) > most:
        raise MalformedError(Reason.CAPTIONS_TOO_MANY, f"expected at most {most} captions, found {len(listed)}")
    single = value.get("caption")
    return Sidecar(
        listed=tuple(_from_value(entry, budget) for entry in listed),
        single=None if single is None else _from_value(single, budget),
        url=_url(value.get("url")),
    )


def _from_value(value: Any, budget: int) -> Caption:
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        return refused(Reason.CAPTION_NOT_TEXT, f"expected text, found {found}")
    try:
        data = value.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"half of a surrogate pair at {error.start}"
        return refused(Reason.CAPTION_NOT_UTF8, f"expected Unicode text, found {found}")
    return from_text(data, budget)


def _url(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def chosen(sidecar: Sidecar, text: Caption | None) -> Sequence[Caption]:
    """The captions that count: the `captions` list, else the `.txt`, else the single `caption`."""
    if sidecar.listed:
        return sidecar.listed
    only = text if text is not None else sidecar.single
    return [] if only is None else [only]


def disagree(sidecar: Sidecar, text: Caption | None) -> bool:
    """Whether the `.txt` and the `.json` both give a caption, and not the same one."""
    said = sidecar.listed or ([sidecar.single] if sidecar.single is not None else [])
    return text is not None and bool(said) and _bare(text) not in [_bare(caption) for caption in said]


def _bare(caption: Caption) -> str | None:
    return None if caption.text is None else caption.text.strip()
