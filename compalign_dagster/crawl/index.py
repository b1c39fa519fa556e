"""A shard's index: the pairs it holds, what was refused and why, and the counts that must add up.

The images stay in the tar; a pair is its place. Equal shards give equal indexes.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from compalign_dagster import parquet
from compalign_dagster.crawl import captions
from compalign_dagster.crawl.captions import Caption
from compalign_dagster.crawl.fingerprints import caption_shape
from compalign_dagster.crawl.reasons import Reason
from compalign_dagster.crawl.samples import Budgets, Picture, Place, Sample, Sorted
from compalign_dagster.crawl.shards import Shard, opened
from compalign_dagster.crawl.streams import Hashed, Inflated
from compalign_dagster.crawl.tables import PAIRS, QUARANTINE, SHARDS
from compalign_dagster.crawl.tar import Damage, LengthNeededError, Member, Tape, walk
from compalign_dagster.errors import ConservationError

CODE_VERSION = 2
COLUMNS_SINCE = 2
"""The CODE_VERSION since which an index has today's columns; older ones cannot be mixed with newer ones."""
_DEFAULT_BUDGETS = Budgets()
_ENDS_EARLY = (Reason.MEMBER_TRUNCATED, Reason.END_MISSING)  # what a gzip stream that stops looks like as a tar

log = logging.getLogger(__name__)

__all__ = [
    "CODE_VERSION",
    "COLUMNS_SINCE",
    "Budgets",
    "Index",
    "ShardIndex",
    "concat",
    "index_shard",
    "make_pair_id",
    "read_again",
    "reasons_of",
]


@dataclass(frozen=True)
class ShardIndex:
    """Tables PAIRS and QUARANTINE of one shard, and its row of SHARDS."""

    pairs: pa.Table
    quarantine: pa.Table
    summary: dict[str, Any]


@dataclass(frozen=True)
class Index:
    """Tables PAIRS, QUARANTINE and SHARDS of several shards."""

    pairs: pa.Table
    quarantine: pa.Table
    shards: pa.Table


def make_pair_id(image_digest: bytes, caption: bytes) -> str:
    """32 hex digits of SHA-256 over the raw 32 bytes of the image's SHA-256, then the caption's bytes."""
    return hashlib.sha256(image_digest + caption).hexdigest()[:32]


def index_shard(shard: Shard, budgets: Budgets = _DEFAULT_BUDGETS) -> ShardIndex:
    """Read a shard once, front to back, whatever it holds; a compressed one with a lying size twice.

    Nothing in a shard makes this fail: what cannot be used is quarantined with its reason.

    Raises:
        CompalignError: when the shard cannot be opened, or is another one than `shard.stamp` says.
        ConservationError: when members or captions do not add up, which would be a mistake here.
    """
    try:
        read = _read(shard, budgets)
    except LengthNeededError as found:  # the first reading found out how long the unpacked tar is
        read = _read(shard, budgets, found.total)
    gathered = read.gathered
    pairs, refused, disagreements = _pairs(shard, gathered)
    counts = gathered.counts
    summary = {
        "shard": shard.name,
        "corpus": shard.corpus,
        "status": _status(read, counts),
        "bytes": read.bytes,
        "sha256": read.digest,
        **{name: counts[name] for name in ("members", "used", "quarantined_members", "ignored", "captions")},
        "pairs": len(pairs),
        "quarantined_captions": refused,
        "disagreements": disagreements,
    }
    rows = sorted(gathered.quarantine, key=_order)
    index = ShardIndex(
        parquet.from_rows(sorted(pairs, key=lambda row: (row["image_offset"], row["caption_index"])), PAIRS),
        parquet.from_rows([{"shard": shard.name, **row} for row in rows], QUARANTINE),
        summary,
    )
    _check_conservation(index)
    return index


def read_again(shard: Shard, keys: Collection[str], budgets: Budgets = _DEFAULT_BUDGETS) -> list[dict[str, Any]]:
    """The rows of PAIRS of these samples alone, as `index_shard` makes them, from the shard as it lies there.

    The shard is read to its end; only members of these samples are decoded. Raises as `index_shard`.
    """
    only = frozenset(keys)
    try:
        read = _read(shard, budgets, only=only)
    except LengthNeededError as found:
        read = _read(shard, budgets, found.total, only)
    return _pairs(shard, read.gathered)[0]


def concat(indexes: Iterable[ShardIndex]) -> Index:
    """Several shards' indexes as one, in the order given."""
    known = list(indexes)
    return Index(
        pa.concat_tables([PAIRS.empty_table(), *(index.pairs for index in known)]),
        pa.concat_tables([QUARANTINE.empty_table(), *(index.quarantine for index in known)]),
        parquet.from_rows([index.summary for index in known], SHARDS),
    )


def reasons_of(quarantine: pa.Table) -> Counter[str]:
    """How many rows of a QUARANTINE table have each reason."""
    return Counter(str(reason) for reason in quarantine["reason"].to_pylist())


@dataclass(frozen=True)
class _Read:
    """What one pass over a shard gave."""

    gathered: Sorted
    damaged: bool
    bytes: int
    digest: str


def _read(shard: Shard, budgets: Budgets, total: int | None = None, only: frozenset[str] | None = None) -> _Read:
    gathered = Sorted(budgets, only=only)
    with opened(shard) as (stream, size):
        hashed = Hashed(stream)
        if shard.compressed:
            unpacked = Inflated(hashed, budgets.unpacked_bytes)
            damaged = _gather(Tape(unpacked), total, gathered, unpacked)
        else:
            damaged = _gather(Tape(hashed), size, gathered)
        return _Read(gathered, damaged, digest=hashed.finish(), bytes=hashed.count)


def _gather(tape: Tape, total: int | None, gathered: Sorted, unpacked: Inflated | None = None) -> bool:
    """Sort every member in; returns whether the archive is damaged."""
    damaged = False
    told = None  # what is wrong with the gzip stream, once it is in the quarantine
    for item in walk(tape, total, gathered.budgets.member_bytes):
        if _is_one_too_many(item, gathered):
            gathered.add_damage(_too_many(item.offset, gathered.budgets.members))
            return True
        if isinstance(item, Damage):
            problem = unpacked.problem if unpacked else None
            if problem and item.reason in _ENDS_EARLY and not tape.peek(1):
                told, item = problem, replace(item, reason=problem.reason, detail=problem.detail)
            gathered.add_damage(item)
            damaged = True
        else:
            gathered.add(item)
            if gathered.kept > gathered.budgets.kept_bytes:
                gathered.add_damage(_too_much_kept(tape.offset, gathered.budgets.kept_bytes))
                return True
    if unpacked and unpacked.problem is not told and unpacked.problem:
        gathered.add_damage(unpacked.problem)
        damaged = True
    if not gathered.counts["members"] and not damaged:
        detail = f"expected members, found none in {tape.offset} bytes"
        gathered.add_damage(Damage(Reason.SHARD_EMPTY, "shard", 0, detail))
    return damaged


def _is_one_too_many(item: Member | Damage, gathered: Sorted) -> bool:
    """Whether the budget is spent: damaged stretches count too, and gaps between them are bounded by their rows."""
    most, counted = gathered.budgets.members, isinstance(item, Member) or item.unit == "member"
    return (counted and gathered.counts["members"] >= most) or len(gathered.quarantine) > 2 * most


def _too_many(offset: int, budget: int) -> Damage:
    detail = f"expected at most {budget} members, found more; nothing was read from here on"
    return Damage(Reason.MEMBERS_TOO_MANY, "shard", offset, detail)


def _too_much_kept(offset: int, budget: int) -> Damage:
    detail = f"expected at most {budget} bytes of names and captions, found more; nothing was read from here on"
    return Damage(Reason.CAPTIONS_TOO_MANY, "shard", offset, detail)


def _status(read: _Read, counts: Counter[str]) -> str:
    sound = counts["members"] - counts["quarantined_members"]
    if read.bytes == 0 or (read.damaged and not sound):
        return "unreadable"
    return "partial" if read.damaged else "ok"


def _pairs(shard: Shard, gathered: Sorted) -> tuple[list[dict], int, int]:
    """Rows of PAIRS, how many captions were refused, in how many samples the files disagree."""
    pairs, refused, disagreements = [], 0, 0
    for sample in gathered.samples.values():
        found = captions.chosen(sample.sidecar, sample.text)
        gathered.counts["captions"] += len(found)
        disagreements += captions.disagree(sample.sidecar, sample.text)
        if sample.image is not None:
            if not found:
                detail = f"expected a caption of {sample.key!r}, found none"
                gathered.refuse(sample.key, sample.image.place, Reason.CAPTION_MISSING, detail)
                continue
            gathered.counts["used"] += 1
        place = sample.sidecar_place if sample.sidecar.listed or sample.text is None else sample.text_place
        for at, caption in enumerate(found):
            if caption.refusal is None and sample.image is not None:
                pairs.append(_pair(shard, sample, sample.image, at, caption))
            else:
                assert place is not None, "a caption was found in some member"
                gathered.quarantine.append(_refused_caption(sample, place, at, caption))
                refused += 1
    return pairs, refused, disagreements


def _pair(shard: Shard, sample: Sample, image: Picture, at: int, caption: Caption) -> dict:
    assert caption.text is not None, "a caption without a refusal has a text"
    shape = caption_shape(caption.text)
    return {
        "pair_id": make_pair_id(image.digest, caption.data),
        "shard": shard.name,
        "key": sample.key,
        "caption_index": at,
        "caption": caption.text,
        "image_offset": image.place.offset,
        "image_length": image.place.length,
        **image.facts,
        **{f"caption_{name}": value for name, value in vars(shape).items()},
        "corpus": shard.corpus,
        "url": sample.sidecar.url,
    }


def _refused_caption(sample: Sample, place: Place, at: int, caption: Caption) -> dict:
    if caption.refusal is not None:
        reason, detail = caption.refusal, caption.detail
    elif sample.image_refused:
        reason, detail = (
            Reason.IMAGE_UNUSABLE,
            f"expected an image of {sample.key!r}, found one that was refused",
        )
    else:
        reason, detail = Reason.IMAGE_MISSING, f"expected an image of {sample.key!r}, found none"
    return {
        "key": sample.key,
        "member": place.name,
        "unit": "caption",
        "caption_index": at,
        "offset": place.offset,
        "reason": reason,
        "detail": detail,
    }


def _order(row: dict) -> tuple[int, str, int]:
    return row["offset"], row["unit"], row.get("caption_index", -1)


def _check_conservation(index: ShardIndex) -> None:
    """Members = used + quarantined + ignored, captions = pairs + quarantined, and a row for each refusal."""
    summary, units = index.summary, Counter(index.quarantine["unit"].to_pylist())
    accounted = summary["used"] + summary["quarantined_members"] + summary["ignored"]
    claims = {
        "members": (summary["members"], accounted),
        "quarantined members": (summary["quarantined_members"], units["member"]),
        "captions": (summary["captions"], index.pairs.num_rows + units["caption"]),
        "quarantined captions": (summary["quarantined_captions"], units["caption"]),
    }
    for what, (expected, found) in claims.items():
        if expected != found:
            raise ConservationError(
                f"{what} of shard {summary['shard']}",
                expected=str(expected),
                found=f"{found} accounted for",
                remedy="This is a mistake in the indexer; please report it with the shard.",
            )
