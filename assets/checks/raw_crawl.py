"""Claims about `raw_crawl`: every shard says what it was, and pairs have the shapes later stages read."""

import dagster as dg
import duckdb
import pyarrow as pa

from assets import keys
from assets.checks.expectations import seeded_sample, validate
from assets.partitions import CRAWL_BATCHES
from assets.reporting import claim
from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.tables import PAIRS
from resources.storage import Storage

_MOST_QUARANTINED = 0.5  # of a shard's captions; above it the shard is more likely broken than noisy


MEMBERS, CAPTIONS = "members_are_used_quarantined_or_ignored", "captions_are_pairs_or_quarantined"

SPECS = [
    dg.AssetCheckSpec(
        MEMBERS,
        asset=keys.RAW_CRAWL,
        blocking=True,
        partitions_def=CRAWL_BATCHES,
        description="Exact SQL over every row of every shard: members = used + quarantine rows of members + ignored.",
    ),
    dg.AssetCheckSpec(
        CAPTIONS,
        asset=keys.RAW_CRAWL,
        blocking=True,
        partitions_def=CRAWL_BATCHES,
        description="Exact SQL over every row of every shard: captions found = rows of pairs + quarantined captions.",
    ),
    dg.AssetCheckSpec(
        asset=keys.RAW_CRAWL,
        name="shards_and_pairs_meet_expectations",
        blocking=True,
        partitions_def=CRAWL_BATCHES,
        description="Great Expectations: one row per shard (complete) and a seeded sample of pairs.",
    ),
    dg.AssetCheckSpec(
        asset=keys.RAW_CRAWL,
        name="most_captions_of_every_shard_are_usable",
        partitions_def=CRAWL_BATCHES,
        description="A warning for shards of which more than half of the captions were quarantined; all shards.",
    ),
]


def conservation(storage: Storage, artifact: Artifact) -> list[dg.AssetCheckResult]:
    """Both identities, counted from the published tables; the counts beside them must agree."""
    shards = parquet.read(artifact.fetch("shards.parquet"))
    rows = shards.num_rows
    members: list[str] = []
    captions: list[str] = []
    with duckdb.connect() as connection:

        def count(table: str, column: str, where: str = "true") -> None:
            paths = [str(storage.store.fetch(str(key))) for key in shards[column].to_pylist()]
            select = f"select shard, count(*) as n from read_parquet(?) where {where} group by shard"  # noqa: S608 - ours
            connection.execute(f"create temp table {table} as {select}", [paths])

        if rows:
            connection.register("shards", shards)
            count("pair_rows", "pairs_key")
            count("member_rows", "quarantine_key", "unit = 'member'")
            count("caption_rows", "quarantine_key", "unit = 'caption'")
            found = connection.execute(_CONSERVATION).fetchall()
            members = [f"{name}: {text}" for name, text, _ in found if text]
            captions = [f"{name}: {text}" for name, _, text in found if text]
    return [claim(MEMBERS, members, shards=rows), claim(CAPTIONS, captions, shards=rows)]


_CONSERVATION = """
with counted as (
    select s.*, coalesce(p.n, 0) as pair_rows, coalesce(m.n, 0) as member_rows, coalesce(c.n, 0) as caption_rows
    from shards s
    left join pair_rows p using (shard) left join member_rows m using (shard) left join caption_rows c using (shard)
)
select shard,
    case when members != used + member_rows + ignored or quarantined_members != member_rows
         then format('{} members are not {} used + {} quarantined + {} ignored', members, used, member_rows, ignored)
    end,
    case when captions != pair_rows + caption_rows or pairs != pair_rows or quarantined_captions != caption_rows
         then format('{} captions are not {} pairs + {} quarantined', captions, pair_rows, caption_rows)
    end
from counted order by shard
"""


def shards_and_pairs(storage: Storage, artifact: Artifact) -> dg.AssetCheckResult:
    """Statuses are known, most captions survive; ids, places and sizes look as documented."""
    import great_expectations.expectations as gxe

    shards = parquet.read(artifact.fetch("shards.parquet"))
    tables = [parquet.read(storage.store.fetch(key)) for key in map(str, shards["pairs_key"].to_pylist())]
    pairs, covers = seeded_sample(pa.concat_tables(tables) if tables else PAIRS.empty_table())
    return validate(
        [
            (
                "shards",
                shards,
                f"all {shards.num_rows:,} shards",
                [
                    gxe.ExpectColumnValuesToBeUnique(column="shard"),
                    gxe.ExpectColumnValuesToBeInSet(column="status", value_set=["ok", "partial", "unreadable"]),
                    gxe.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
                ],
            ),
            (
                "pairs",
                pairs,
                covers,
                [
                    gxe.ExpectColumnValuesToMatchRegex(column="pair_id", regex="^[0-9a-f]{32}$"),
                    gxe.ExpectColumnValuesToMatchRegex(column="image_sha256", regex="^[0-9a-f]{64}$"),
                    gxe.ExpectColumnValuesToBeBetween(column="width", min_value=1),
                    gxe.ExpectColumnValuesToBeBetween(column="height", min_value=1),
                    gxe.ExpectColumnValuesToBeBetween(column="image_length", min_value=1),
                    gxe.ExpectColumnValueLengthsToBeBetween(column="caption", min_value=1),
                ],
            ),
        ],
        name="shards_and_pairs_meet_expectations",
        severity=dg.AssetCheckSeverity.ERROR,
        may_be_empty=shards.num_rows == 0,  # a batch that only removes shards
    )


def usable_share(artifact: Artifact) -> dg.AssetCheckResult:
    """A shard above the share is more likely broken than noisy; it does not hold up its batch."""
    rows = parquet.read(artifact.fetch("shards.parquet")).to_pylist()
    bad = [
        f"{row['shard']}: {row['quarantined_captions']:,} of {row['captions']:,} captions"
        for row in rows
        if row["quarantined_captions"] > _MOST_QUARANTINED * row["captions"] or row["status"] == "unreadable"
    ]
    return dg.AssetCheckResult(
        check_name="most_captions_of_every_shard_are_usable",
        passed=not bad,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"shards": dg.MetadataValue.md("\n".join(f"- {text}" for text in bad[:50]) or "none")},
    )
