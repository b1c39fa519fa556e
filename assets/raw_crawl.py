"""`raw_crawl`: the pair index and the quarantine of a batch. Images stay in the tar, byte for byte."""

import logging
import random
import tempfile
from collections import Counter
from pathlib import Path

import dagster as dg
import pyarrow as pa

from assets import keys
from assets.checks import raw_crawl as checks
from assets.partitions import CRAWL_BATCHES
from assets.reporting import PAGE, PREVIEW, claim, counts_table, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.crawl import batches, tables
from compalign_dagster.crawl.batches import Batch, ShardStamp, live_shards
from compalign_dagster.crawl.index import CODE_VERSION, Budgets, index_shard
from compalign_dagster.crawl.live import is_delivered, require_delivered
from compalign_dagster.crawl.shards import Shard, read_member
from compalign_dagster.settings import Settings
from compalign_dagster.versions import work_key
from resources.storage import Storage

KIND = keys.RAW_CRAWL.to_user_string()
SHARD_KIND = "raw_crawl_shards"
_GALLERY_PAIRS = 24
_QUARANTINE_ROWS_SHOWN = 200

log = logging.getLogger(f"compalign_dagster.{__name__}")


@dg.asset(
    key=keys.RAW_CRAWL,
    partitions_def=CRAWL_BATCHES,
    deps=[keys.LANDED_SHARDS],
    group_name=keys.CRAWL_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet", "webdataset"},
    code_version=str(CODE_VERSION),
    check_specs=[
        dg.AssetCheckSpec(
            "every_member_and_caption_is_accounted_for",
            asset=keys.RAW_CRAWL,
            blocking=True,
            partitions_def=CRAWL_BATCHES,
            description="members = used + quarantined + ignored; captions found = pairs + quarantined; all shards.",
        ),
        *checks.SPECS,
    ],
)
def raw_crawl(
    context: dg.AssetExecutionContext, storage: Storage, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult:
    """Pairs of a batch's shards, each with its place in the tar, and what was refused with its reason.

    Published shard by shard: a crash repeats at most the shard it interrupted.
    """
    batch = batches.require(storage.store, context.partition_key)
    budgets = Budgets(
        member_bytes=settings.member_bytes,
        image_pixels=settings.image_pixels,
        caption_bytes=settings.caption_bytes,
    )
    artifact, reused = index_batch(storage, batch, budgets)
    facts = artifact.facts
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
        },
        checks=[
            claim("every_member_and_caption_is_accounted_for", unaccounted(facts)),
            checks.shards_and_pairs(storage, artifact),
            checks.usable_share(artifact),
        ],
    )


def unaccounted(facts: dict) -> list[str]:
    """The conservation identities that do not hold for a batch's counts."""
    problems = []
    if facts["members"] != facts["used"] + facts["quarantined_members"] + facts["ignored"]:
        problems.append("members are not used + quarantined + ignored")
    if facts["captions"] != facts["pairs"] + facts["quarantined_captions"]:
        problems.append("captions found are not pairs + quarantined")
    return problems


def index_batch(storage: Storage, batch: Batch, budgets: Budgets) -> tuple[Artifact, bool]:
    """The published index of a batch's live shards, and whether all of it was there already.

    A shard that changed since the batch was sealed is left out: the next sealing supersedes or removes it.
    """
    store = storage.store
    live = live_shards(batches.read_log(store))
    listed = [item for item in (*batch.added, *batch.superseded) if live.get(item.shard) == (batch.key, item)]
    changed = [item.shard for item in listed if not is_delivered(storage.landing, item)]
    if changed:
        log.warning("raw_crawl %s: left out, changed since sealed: %s", batch.key, ", ".join(changed[:10]))
        listed = [item for item in listed if item.shard not in changed]
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[[item.shard, item.size, item.stamp] for item in listed],
        config=vars(budgets),
    )

    def make() -> Artifact:
        shards = []
        for at, item in enumerate(listed, start=1):
            shards.append(_index_shard(storage, item, budgets))
            log.info("raw_crawl %s: %d of %d shards, %s", batch.key, at, len(listed), item.shard)
        return _publish_batch(storage, batch, key, budgets, shards)

    return latest.reuse_or_make(store, KIND, key, make, batch.key)


def _index_shard(storage: Storage, item: ShardStamp, budgets: Budgets) -> Artifact:
    key = work_key(
        SHARD_KIND,
        code_version=CODE_VERSION,
        inputs=[item.shard, item.size, item.stamp],
        config=vars(budgets),
    )
    found = artifacts.find(storage.store, SHARD_KIND, key)
    if found is not None:
        return found
    index = index_shard(Shard(item.shard, storage.landing, item.shard), budgets)
    require_delivered(storage.landing, item)  # it may have been written over while it was read
    reasons = Counter(index.quarantine["reason"].to_pylist())
    with tempfile.TemporaryDirectory() as folder:
        return artifacts.publish(
            storage.store,
            SHARD_KIND,
            key,
            {
                "pairs.parquet": parquet.write(index.pairs, Path(folder, "pairs.parquet")),
                "quarantine.parquet": parquet.write(index.quarantine, Path(folder, "quarantine.parquet")),
            },
            code_version=CODE_VERSION,
            inputs=[Input("landed_shard", f"{storage.landing.url}/{item.shard}", index.summary["sha256"])],
            config=vars(budgets),
            facts={**index.summary, "quarantined_by_reason": dict(reasons)},
        )


def _publish_batch(storage: Storage, batch: Batch, key: str, budgets: Budgets, shards: list[Artifact]) -> Artifact:
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
    quarantine = [
        entry for row in rows for entry in parquet.read(storage.store.fetch(row["quarantine_key"])).to_pylist()
    ]
    page = crawl_page({"batch": batch.key, **facts, "shards": rows}, cards, quarantine[:_QUARANTINE_ROWS_SHOWN])
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
    return [
        (
            row,
            read_member(Shard(row["shard"], storage.landing, row["shard"]), row["image_offset"], row["image_length"]),
        )
        for row in chosen[:_GALLERY_PAIRS]
    ]
