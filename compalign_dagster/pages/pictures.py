"""The pictures of pairs, read from where they landed, as cards.

What belongs here: bytes by place, proved to be the pair's. What does not: which pairs (`selection.views`), and how
a card looks (`cards.py`, the templates).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.errors import InputError
from compalign_dagster.pages.cards import Card
from compalign_dagster.selection.pairs import proved
from compalign_dagster.store import ObjectChangedError, ObjectMissingError, Store

log = logging.getLogger(__name__)


def cards(
    landing: Store, rows: Sequence[Mapping[str, Any]], link: Callable[[Mapping[str, Any]], str] = lambda row: ""
) -> list[Card]:
    """Cards of pairs, in their order: `pair_id, shard, key, caption_index, caption, reward, reason` and place.

    A picture is empty where other bytes lie by now, or nothing, or the caption is gone: the log says so.
    """
    images = pictures(landing, rows)
    return [
        Card(
            image=image,
            caption=row["caption"] or "",
            reward=row["reward"],
            note=f"{row['reason'] or 'kept'} · {row['shard']} {row['key']} {row['caption_index']}",
            pair_id=row["pair_id"],
            link=link(row),
        )
        for image, row in zip(images, rows, strict=True)
    ]


def pictures(landing: Store, rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """The image bytes of pairs, in their order; read shard by shard, so that a compressed one is unpacked once."""
    found = [b""] * len(rows)
    with MemberReader() as reader:
        for at in sorted(range(len(rows)), key=lambda at: (rows[at]["shard"], rows[at]["image_offset"])):
            found[at] = _picture(reader, landing, rows[at])
    return found


def _picture(reader: MemberReader, landing: Store, row: Mapping[str, Any]) -> bytes:
    shard = Shard(row["shard"], landing, row["shard"])
    try:
        return proved(row, reader.read(shard, row["image_offset"], row["image_length"]))
    except (InputError, ObjectMissingError, ObjectChangedError) as error:
        log.warning("a pair is shown without its picture: %s", error)
        return b""
