"""`raw_crawl`: the pair index and the quarantine of a batch. Images stay in the tar, byte for byte."""

import logging
import random
import tempfile
from collections import Counter
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from assets import keys
from assets.checks import raw_crawl as checks
from assets.partitions import CRAWL_BATCHES
from assets.reporting import PAGE, PREVIEW, counts_table, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.crawl import batches, tables
from compalign_dagster.crawl.batches import Batch, ShardStamp, live_shards
from compalign_dagster.crawl.index import CODE_VERSION, COLUMNS_SINCE, Budgets, index_shard
from compalign_dagster.crawl.live import is_delivered, require_delivered
from compalign_dagster.crawl.replay import chosen_reasons, is_chosen, recovery, recovery_lines
from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store
from compalign_dagster.versions import work_key
from resources.storage import Storage

KIND = keys.RAW_CRAWL.to_user_string()
SHARD_KIND = "raw_crawl_shards"
_GALLERY_PAIRS = 24
_QUARANTINE_ROWS_SHOWN = 200

log = logging.getLogger(f"compalign_dagster.{__name__}")


class IndexConfig(dg.Config):
    """What a run reads again. Without it, everything that this release and these budgets did not read yet."""

    replay_quarantine: bool = Field(False, description="Read only shards again of which something was refused.")
    reasons: list[str] = Field([], description="Reasons worth a retry; empty: all that a fix may take away.")


@dg.asset(
    key=keys.RAW_CRAWL,
    partitions_def=CRAWL_BATCHES,
    deps=[keys.LANDED_SHARDS],
    group_name=keys.CRAWL_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet", "webdataset"},
    code_version=str(CODE_VERSION),
    check_specs=checks.SPECS,
)
def raw_crawl(
    context: dg.AssetExecutionContext,
    storage: Storage,
    settings: dg.ResourceParam[Settings],
    config: IndexConfig,
) -> dg.MaterializeResult:
    """Pairs of a batch's shards, each with its place in the tar, and what was refused with its reason.

    Published shard by shard: a crash repeats at most the shard it interrupted.
    """
    batch = batches.require(storage.store, context.partition_key)
    budgets = Budgets(
        member_bytes=settings.member_bytes,
        image_pixels=settings.image_pixels,
        caption_bytes=settings.caption_bytes,
        members=settings.shard_members,
        unpacked_bytes=settings.unpacked_bytes,
    )
    wanted = chosen_reasons(config.reasons) if config.replay_quarantine else None
    artifact, reused = index_batch(storage, batch, budgets, replay=wanted)
    facts = artifact.facts
    replayed = "\n".join(f"- {line}" for line in recovery_lines(facts["replayed"])) if "replayed" in facts else None
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["pairs"],
        schema=tables.PAIRS,
        metadata={
            **{name: facts[name] for name in ("shards", "pairs", "captions", "quarantined_captions", "members")},
            "quarantined by reason": counts_table("reason", facts["quarantined_by_reason"]),
            "shards not fully readable": facts["shards_not_ok"],
            **({"quarantine replayed": dg.MetadataValue.md(replayed)} if replayed else {}),
        },
        checks=[
            *checks.conservation(storage, artifact),
            checks.shards_and_pairs(storage, artifact),
            checks.usable_share(artifact),
        ],
    )


def index_batch(
    storage: Storage, batch: Batch, budgets: Budgets, *, replay: Collection[str] | None = None
) -> tuple[Artifact, bool]:
    """The published index of a batch's live shards, and whether all of it was there already.

    A shard that changed since the batch was sealed is left out: the next sealing supersedes or removes it.
    With `replay`, shards of the newest index without a refusal for one of these reasons keep the index they
    have, whatever release and budgets made it.
    """
    store = storage.store
    live = live_shards(batches.read_log(store))
    listed = [item for item in (*batch.added, *batch.superseded) if live.get(item.shard) == (batch.key, item)]
    landing = storage.landing
    changed = {item.shard for item in listed if not is_delivered(landing, item)}
    if changed:
        log.warning("raw_crawl %s: left out, changed since sealed: %s", batch.key, ", ".join(sorted(changed)[:10]))
        listed = [item for item in listed if item.shard not in changed]
    newest = None if replay is None else latest.require(store, KIND, batch.key)
    before = _shards_of(newest) if newest else {}
    kept = {name: shard for name, shard in before.items() if not _is_retried(shard, replay or ())}
    if newest and before.keys() == kept.keys() == {item.shard for item in listed}:
        return newest, True
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[
            [item.shard, item.size, item.stamp, *([kept[item.shard].work_key] if item.shard in kept else [])]
            for item in listed
        ],
        config=vars(budgets),
    )

    def make() -> Artifact:
        shards = []
        for at, item in enumerate(listed, start=1):
            shards.append(kept.get(item.shard) or _index_shard(landing, store, item, budgets))
            log.info("raw_crawl %s: %d of %d shards, %s", batch.key, at, len(listed), item.shard)
        return _publish_batch(storage, batch, key, budgets, shards, {} if replay is None else _replayed(before, shards))

    return latest.reuse_or_make(store, KIND, key, make, batch.key)


def _shards_of(artifact: Artifact) -> dict[str, Artifact]:
    """The indexes of shards that a batch's index is made of, by shard."""
    loaded = (artifacts.load(artifact.store, item.key) for item in artifact.inputs if item.kind == SHARD_KIND)
    return {shard.facts["shard"]: shard for shard in loaded if shard is not None}


def _is_retried(shard: Artifact, wanted: Collection[str]) -> bool:
    """Whether a shard has a refusal that is retried; an index of other columns cannot stay either."""
    return is_chosen(shard.facts["quarantined_by_reason"], wanted) or shard.manifest["code_version"] < COLUMNS_SINCE


def _replayed(before: dict[str, Artifact], shards: list[Artifact]) -> dict[str, Any]:
    """What the shards that were read again had refused before and have now."""
    after = {shard.facts["shard"]: shard for shard in shards}
    again = [name for name, shard in before.items() if name in after and after[name].work_key != shard.work_key]
    old: Counter[str] = Counter()
    new: Counter[str] = Counter()
    for name in again:
        old.update(before[name].facts["quarantined_by_reason"])
        new.update(after[name].facts["quarantined_by_reason"])
    return {"replayed": recovery(old, new), "shards_read_again": sorted(again)}


def _index_shard(landing: Store, store: Store, item: ShardStamp, budgets: Budgets) -> Artifact:
    key = work_key(
        SHARD_KIND,
        code_version=CODE_VERSION,
        inputs=[item.shard, item.size, item.stamp],
        config=vars(budgets),
    )
    found = artifacts.find(store, SHARD_KIND, key)
    if found is not None:
        return found
    index = index_shard(Shard(item.shard, landing, item.shard, item.stamp), budgets)
    require_delivered(landing, item)  # on a disk it may have been written over in place while it was read
    reasons = Counter(index.quarantine["reason"].to_pylist())
    with tempfile.TemporaryDirectory() as folder:
        return artifacts.publish(
            store,
            SHARD_KIND,
            key,
            {
                "pairs.parquet": parquet.write(index.pairs, Path(folder, "pairs.parquet")),
                "quarantine.parquet": parquet.write(index.quarantine, Path(folder, "quarantine.parquet")),
            },
            code_version=CODE_VERSION,
            inputs=[Input("landed_shard", f"{landing.url}/{item.shard}", index.summary["sha256"])],
            config=vars(budgets),
            facts={**index.summary, "quarantined_by_reason": dict(reasons)},
        )


def _publish_batch(
    storage: Storage, batch: Batch, key: str, budgets: Budgets, shards: list[Artifact], replayed: dict[str, Any]
) -> Artifact:
    rows = [
        {
            **{name: shard.facts[name] for name in tables.SHARDS.names},
            "pairs_key": shard.file_key("pairs.parquet"),
            "quarantine_key": shard.file_key("quarantine.parquet"),
            "index_version": shard.data_version,
        }
        for shard in shards
    ]
    reasons: Counter[str] = Counter()
    for shard in shards:
        reasons.update(shard.facts["quarantined_by_reason"])
    facts = {
        "shards": len(rows),
        "removed": list(batch.removed),
        "shards_not_ok": sum(row["status"] != "ok" for row in rows),
        "quarantined_by_reason": dict(reasons),
        **{
            name: sum(row[name] for row in rows)
            for name in ("members", "used", "quarantined_members", "ignored", "captions", "pairs",
                         "quarantined_captions", "disagreements")
        },
        **replayed,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return artifacts.publish(
            storage.store,
            KIND,
            key,
            {
                "shards.parquet": parquet.write(
                    parquet.from_rows(rows, tables.BATCH_SHARDS), Path(folder, "shards.parquet")
                )
            },
            code_version=CODE_VERSION,
            inputs=[shard.as_input() for shard in shards],
            config=vars(budgets),
            facts=facts,
            views=_views(storage, batch, facts, rows),
            partition=batch.key,
        )


def _views(storage: Storage, batch: Batch, facts: dict, rows: list[dict]) -> dict[str, bytes]:
    """The page of a batch, and a contact sheet of some of its pairs."""
    from compalign_dagster.pages.cards import Card
    from compalign_dagster.pages.crawl import crawl_page
    from compalign_dagster.pages.images import contact_sheet

    pairs = _some_pairs(storage, rows)
    cards = [Card(image=data, caption=row["caption"], note=f"{row['shard']} {row['key']}") for row, data in pairs]
    refused = (entry for row in rows for entry in parquet.read(storage.store.fetch(row["quarantine_key"])).to_pylist())
    shown = list(islice(refused, _QUARANTINE_ROWS_SHOWN))  # a batch of broken shards has millions
    page = crawl_page({"batch": batch.key, **facts, "shards": rows}, cards, shown)
    sheet = [data for _, data in pairs]
    return {PAGE: page, **({PREVIEW: contact_sheet(sheet, columns=8)} if sheet else {})}


def _some_pairs(storage: Storage, rows: list[dict]) -> list[tuple[dict, bytes]]:
    """A few pairs of a batch with their image bytes, the same ones each time."""
    chooser, chosen = random.Random(0), []
    for row in chooser.sample(rows, min(len(rows), _GALLERY_PAIRS)):
        pairs = parquet.read(storage.store.fetch(row["pairs_key"]))
        wanted = min(pairs.num_rows, -(-_GALLERY_PAIRS // max(len(rows), 1)))
        picked: pa.Table = pairs.take(sorted(chooser.sample(range(pairs.num_rows), wanted)))
        chosen += picked.to_pylist()
    landing = storage.landing
    with MemberReader() as members:
        return [
            (
                row,
                members.read(Shard(row["shard"], landing, row["shard"]), row["image_offset"], row["image_length"]),
            )
            for row in chosen[:_GALLERY_PAIRS]
        ]
