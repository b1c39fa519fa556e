"""The page of a `raw_crawl` batch: what arrived, what became pairs, what was refused and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from compalign_dagster.pages.cards import Card, gallery, largest_first, readable
from compalign_dagster.pages.render import render

_SHARDS_SHOWN = 200
_QUARANTINE_SHOWN = 200
_SUMMED = (
    "bytes", "members", "used", "quarantined_members", "ignored", "captions", "pairs", "quarantined_captions",
)  # fmt: skip


def crawl_page(summary: Mapping[str, Any], cards: Sequence[Card], quarantine: Sequence[Mapping[str, Any]]) -> bytes:
    """The page of one batch.

    `summary`: `batch`, `shards` (rows of the SHARDS table), `quarantined_by_reason` (counts), optionally
    `removed` (names) and `disagreements`. `quarantine`: rows of the QUARANTINE table; the first 200 are
    shown.
    """
    shards = list(summary["shards"])
    reasons = dict(summary.get("quarantined_by_reason") or {})
    return render(
        "crawl.html",
        batch=summary["batch"],
        shards=shards[:_SHARDS_SHOWN],
        shard_count=len(shards),
        removed=list(summary.get("removed") or []),
        disagreements=sum(shard.get("disagreements") or 0 for shard in shards),
        not_ok=[shard for shard in shards if shard["status"] != "ok"],
        total={name: sum(shard.get(name) or 0 for shard in shards) for name in _SUMMED},
        reasons=largest_first(reasons),
        refused=sum(reasons.values()),
        gallery=gallery(cards),
        quarantine=[
            {**row, "detail": readable(row.get("detail") or "", 200)} for row in quarantine[:_QUARANTINE_SHOWN]
        ],
    )
