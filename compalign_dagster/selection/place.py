"""A place in the order of pairs from best to worst, and how it is written; what is read may come from anybody."""

import json
import math
from typing import Any

from compalign_dagster.errors import InputError

_KINDS: tuple[tuple[type, ...], ...] = ((int, float, type(None)), (str,), (str,), (str,), (int,))

Key = tuple[float | None, str, str, str, int]
"""(reward, pair_id, shard, key, caption_index): a place in the order from best to worst; no reward comes last."""


def key_text(key: Key) -> str:
    """A place as one line of JSON."""
    return json.dumps(list(key), ensure_ascii=True)


def parse_key(text: str) -> Key:
    """A place from what `key_text` writes; fewer parts start in front of all that share them.

    Raises `InputError` for anything else.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, list) or not 1 <= len(found) <= len(_KINDS):
            raise ValueError
        if not all(type(part) in kinds for part, kinds in zip(found, _KINDS, strict=False)):
            raise ValueError
        if found[0] is not None and not math.isfinite(float(found[0])):
            raise ValueError
        "".join(map(str, found)).encode()  # half of a pair of surrogates is no text
    except (ValueError, OverflowError, RecursionError):
        raise InputError(
            "a place to start behind",
            expected="[reward or null, pair_id, shard, key, caption_index] as JSON",
            found=repr(text[:80]),
            remedy="Copy it from a page or from the command of a view.",
        ) from None
    parts: list[Any] = [*found, *(0.0, "", "", "", -1)[len(found) :]]
    reward, pair_id, shard, key, at = parts
    return (None if reward is None else float(reward), pair_id, shard, key, at)
