"""A shard's index: the pairs it holds, what was refused and why, and the counts that must add up.

The images stay in the tar; a pair is its place. Equal shards give equal indexes.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from compalign_dagster import parquet
from compalign_dagster.crawl import captions
from compalign_dagster.crawl.captions import Caption
from compalign_dagster.crawl.reasons import Reason
from compalign_dagster.crawl.samples import Budgets, Picture, Place, Sample, Sorted
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.crawl.tables import PAIRS, QUARANTINE, SHARDS
from compalign_dagster.crawl.tar import Damage, Member, Tape, walk
from compalign_dagster.errors import ConservationError, InputError

CODE_VERSION = 1
_DEFAULT_BUDGETS = Budgets()

log = logging.getLogger(__name__)

__all__ = ["CODE_VERSION", "Budgets", "Index", "ShardIndex", "concat", "index_shard", "make_pair_id", "reasons_of"]


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
    """Read a shard once, front to back, whatever it holds.

    Nothing in a shard makes this fail: what cannot be used is quarantined with its reason.

    Raises:
        InputError: when the shard cannot be opened.
        ConservationError: when members or captions do not add up, which would be a mistake here.
    """
    try:
        size = shard.store.stat(shard.key).size
        stream = shard.store.open(shard.key)
    except OSError as error:
        raise InputError(
            f"shard {shard.name} in {shard.store.url}",
            expected="a readable file",
            found=str(error).splitlines()[0],
            remedy="Check that it is still there and may be read.",
        ) from error
    gathered = Sorted(budgets)
    with stream:
        tape = Tape(stream)
        damaged = _gather(tape, size, gathered)
        digest = tape.finish()
    pairs, refused, disagreements = _pairs(shard, gathered)
    counts = gathered.counts
    summary = {
        "shard": shard.name,
        "corpus": shard.corpus,
        "status": _status(damaged, size, counts),
        "bytes": tape.offset,
        "sha256": digest,
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


def _gather(tape: Tape, size: int, gathered: Sorted) -> bool:
    """Sort every member in; returns whether the archive is damaged."""
    damaged = False
    for item in walk(tape, size):
        if isinstance(item, Damage):
            gathered.add_damage(item)
            damaged = True
        elif gathered.counts["members"] >= gathered.budgets.members:
            gathered.add_damage(_too_many(item, gathered.budgets.members))
            return True
        else:
            gathered.add(item)
    if not gathered.counts["members"] and not damaged:
        detail = f"expected members, found none in {size} bytes"
        gathered.add_damage(Damage(Reason.SHARD_EMPTY, "shard", 0, detail))
    return damaged


def _too_many(member: Member, budget: int) -> Damage:
    detail = f"expected at most {budget} members, found more; nothing was read from here on"
    return Damage(Reason.MEMBERS_TOO_MANY, "shard", member.offset, detail)


def _status(damaged: bool, size: int, counts: Counter[str]) -> str:
    sound = counts["members"] - counts["quarantined_members"]
    if size == 0 or (damaged and not sound):
        return "unreadable"
    return "partial" if damaged else "ok"


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
    return {
        "pair_id": make_pair_id(image.digest, caption.data),
        "shard": shard.name,
        "key": sample.key,
        "caption_index": at,
        "caption": caption.text,
        "image_offset": image.place.offset,
        "image_length": image.place.length,
        "width": image.facts.width,
        "height": image.facts.height,
        "image_sha256": image.digest.hex(),
        "image_format": image.facts.format,
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
