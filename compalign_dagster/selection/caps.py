"""Caps over the whole crawl: the best few of each domain and of each group of duplicates stay candidates.

A cap needs all candidates of a group at once, so it runs in full, through DuckDB, which spills to disk. What
it takes away is a small table beside the ranked lists, which stay as they are.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import duckdb
import polars as pl

from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import InputError
from compalign_dagster.selection import reasons
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.tables import CAPPED

_MEMORY_MIB = 1024
_BEST_FIRST = "reward desc, pair_id, shard, key, caption_index"


def needs_groups(policy: Policy) -> bool:
    """Whether the policy asks for duplicate groups."""
    return policy.most_per_duplicate_group is not None


def capped(lists: Mapping[str, Artifact], policy: Policy, groups: Artifact | None) -> pl.DataFrame:
    """The candidates that the policy's caps take away (CAPPED), sorted by batch and row.

    `lists` are the ranked lists by batch, `groups` the crawl's `duplicate_groups`. Duplicates come first: a
    pair that they take away does not count for its domain. Pairs without a URL have no domain and no cap.
    Raises `InputError` when duplicates are capped and there are no groups.
    """
    if needs_groups(policy) and groups is None:
        raise InputError(
            "policy: most_per_duplicate_group",
            expected="duplicate groups of the crawl as it is",
            found="none, or groups of another crawl",
            remedy="Materialise duplicate_groups, then filtered_dataset again.",
        )
    caps = [
        (reasons.DUPLICATE_CAP, "group_id", policy.most_per_duplicate_group),
        (reasons.DOMAIN_CAP, "domain", policy.most_per_domain),
    ]
    asked = [(reason, by, most) for reason, by, most in caps if most is not None]
    if not asked or not lists:
        return pl.DataFrame(schema=pl.DataFrame(pl.from_arrow(CAPPED.empty_table())).schema)
    with tempfile.TemporaryDirectory() as folder:
        config = {"memory_limit": f"{_MEMORY_MIB}MiB", "temp_directory": str(Path(folder, "spill"))}
        with duckdb.connect(str(Path(folder, "caps.duckdb")), config={**config}) as database:
            database.execute("set enable_progress_bar = false")
            _load(database, lists, groups)
            for reason, by, most in asked:
                database.execute(
                    f"""
                    insert into capped
                    select batch, row, pair_id, shard, key, caption_index, corpus, reward, ? from (
                        select *, row_number() over (partition by {by} order by {_BEST_FIRST}) as place
                        from candidates anti join capped using (batch, row) where {by} is not null
                    ) where place > ?
                    """,  # noqa: S608 - names of our own
                    [reason, most],
                )
            found = database.sql("select * from capped order by batch, row").to_arrow_table()
    return pl.DataFrame(pl.from_arrow(found.cast(CAPPED)))


def _load(database: duckdb.DuckDBPyConnection, lists: Mapping[str, Artifact], groups: Artifact | None) -> None:
    """Tables `candidates` and an empty `capped`."""
    files = pl.DataFrame(
        {
            "file": [str(artifact.fetch("ranked.parquet")) for artifact in lists.values()],
            "batch": list(lists),
        }
    )
    database.register("files", files.to_arrow())
    if groups is None:
        database.execute("create table groups (shard text, key text, group_id text)")
    else:
        database.execute(
            "create table groups as select shard, key, group_id from read_parquet(?)",
            [str(groups.fetch("duplicates.parquet"))],
        )
    database.execute(
        """
        create table candidates as
        select batch, file_row_number as row, pair_id, r.shard, r.key, caption_index, corpus, reward, domain, group_id
        from read_parquet(?, filename = true, file_row_number = true) r
        join files on r.filename = files.file left join groups on groups.shard = r.shard and groups.key = r.key
        where reason is null
        """,
        [files["file"].to_list()],
    )
    database.execute("create table capped as select * exclude (domain, group_id), '' as reason from candidates limit 0")
