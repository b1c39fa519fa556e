"""Caps over the whole crawl: the best few of each group of duplicates, semantic cluster and domain stay candidates.

A cap needs all candidates of a group at once, so it runs in full, through DuckDB, which spills to disk. What
it takes away is a small table beside the ranked lists, which stay as they are.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import polars as pl

from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import InputError
from compalign_dagster.selection import reasons
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.tables import CAPPED

_MEMORY_MIB = 1024
_BEST_FIRST = "reward desc, pair_id, shard, key, caption_index"


class Cap(NamedTuple):
    """A limit on the candidates that share a value."""

    reason: str
    field: str  # of the policy
    by: str  # the column with the value
    kind: str = ""  # of the artifact that says the value for each (shard, key); without one the ranked lists do
    file: str = ""  # of that artifact


CAPS = (
    Cap(reasons.DUPLICATE_CAP, "most_per_duplicate_group", "group_id", "duplicate_groups", "duplicates.parquet"),
    Cap(reasons.CLUSTER_CAP, "most_per_semantic_cluster", "cluster", "semantic_clusters", "assignment.parquet"),
    Cap(reasons.DOMAIN_CAP, "most_per_domain", "domain"),
)
"""In the order in which they apply: a pair that one takes away does not count for the next."""

KINDS = tuple(cap.kind for cap in CAPS if cap.kind)


def limits(policy: Policy) -> tuple[int | None, ...]:
    """What of a policy takes candidates away, in the order of CAPS."""
    return tuple(getattr(policy, cap.field) for cap in CAPS)


def needed(policy: Policy) -> list[str]:
    """The kinds of artifact without which the policy's caps cannot be applied."""
    return [cap.kind for cap, most in zip(CAPS, limits(policy), strict=True) if cap.kind and most is not None]


def capped(lists: Mapping[str, Artifact], policy: Policy, groups: Mapping[str, Artifact]) -> pl.DataFrame:
    """The candidates that the policy's caps take away (CAPPED), sorted by batch and row.

    `lists` are the ranked lists by batch, `groups` the artifacts of the crawl by kind, those that the policy `needed`
    among them. Pairs without a URL have no domain and no cap; nor has a pair whose image is in no group.
    Raises `InputError` when there are no groups for a cap.
    """
    asked = [(cap, most) for cap, most in zip(CAPS, limits(policy), strict=True) if most is not None]
    for cap, _ in asked:
        if cap.kind and cap.kind not in groups:
            raise InputError(
                f"policy: {cap.field}",
                expected=f"{cap.kind.replace('_', ' ')} of the crawl as it is",
                found="none, or those of another crawl",
                remedy=f"Materialise {cap.kind}, then filtered_dataset again.",
            )
    if not asked or not lists:
        return pl.DataFrame(schema=pl.DataFrame(pl.from_arrow(CAPPED.empty_table())).schema)
    with tempfile.TemporaryDirectory() as folder:
        config = {"memory_limit": f"{_MEMORY_MIB}MiB", "temp_directory": str(Path(folder, "spill"))}
        with duckdb.connect(str(Path(folder, "caps.duckdb")), config={**config}) as database:
            database.execute("set enable_progress_bar = false")
            _load(database, lists, [(cap, groups[cap.kind]) for cap, _ in asked if cap.kind])
            for cap, most in asked:
                database.execute(
                    f"""
                    insert into capped
                    select batch, row, pair_id, shard, key, caption_index, corpus, reward, ? from (
                        select *, row_number() over (partition by {cap.by} order by {_BEST_FIRST}) as place
                        from candidates anti join capped using (batch, row) where {cap.by} is not null
                    ) where place > ?
                    """,  # noqa: S608 - names of our own
                    [cap.reason, most],
                )
            found = database.sql("select * from capped order by batch, row").to_arrow_table()
    return pl.DataFrame(pl.from_arrow(found.cast(CAPPED)))


def _load(
    database: duckdb.DuckDBPyConnection, lists: Mapping[str, Artifact], groups: Sequence[tuple[Cap, Artifact]]
) -> None:
    """Tables `candidates`, with a column for each of the groups, and an empty `capped`."""
    files = pl.DataFrame(
        {
            "file": [str(artifact.fetch("ranked.parquet")) for artifact in lists.values()],
            "batch": list(lists),
        }
    )
    database.register("files", files.to_arrow())
    joins = [f"left join (select shard, key, {cap.by} from read_parquet(?)) using (shard, key)" for cap, _ in groups]  # noqa: S608
    values = "".join(f", {cap.by}" for cap, _ in groups)
    database.execute(
        f"""
        create table candidates as
        select batch, file_row_number as row, pair_id, shard, key, caption_index, corpus, reward, domain{values}
        from read_parquet(?, filename = true, file_row_number = true) r
        join files on r.filename = files.file {" ".join(joins)}
        where reason is null
        """,  # noqa: S608 - names of our own
        [files["file"].to_list(), *(str(artifact.fetch(cap.file)) for cap, artifact in groups)],
    )
    database.execute(
        """
        create table capped as select batch, row, pair_id, shard, key, caption_index, corpus, reward, '' as reason
        from candidates limit 0
        """
    )
