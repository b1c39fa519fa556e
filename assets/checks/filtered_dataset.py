"""Claims about `filtered_dataset`: kept is kept once, above the cut, and its lineage verifies from files."""

from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa

from assets import keys
from assets.checks.expectations import SAMPLE_ROWS, validate
from assets.reporting import problems_list
from compalign_dagster.artifacts import Artifact
from compalign_dagster.lineage.chain import verify
from compalign_dagster.selection import reasons
from compalign_dagster.selection.sql import create_views
from compalign_dagster.selection.version import Version

_SHARDS = """
select d.shard,
    count(*) - count(distinct (d.key, d.caption_index)) as repeated,
    count(*) filter (d.reason is not null and not list_contains(?, d.reason)) as unknown_reasons,
    count(*) filter (d.reason is null and (c.cut is null or d.reward is null or d.reward < c.cut)) as kept_below_cut,
    count(*) filter (d.reason in ('below_cut', 'tied_at_cut', 'no_budget') and d.reward > c.cut) as dropped_above_cut
from decided d join lists l on l.batch = d.batch and l.corpus = d.corpus join cuts c on c.budget = l.budget
group by 1 order by 1
"""
_KEPT_SAMPLE = f"select * from kept using sample reservoir({SAMPLE_ROWS} rows) repeatable (0)"  # noqa: S608

SPECS = [
    dg.AssetCheckSpec(
        asset=keys.FILTERED_DATASET,
        name="dataset_meets_expectations",
        blocking=True,
        description="Great Expectations: one row per shard made by DuckDB (complete) and a sample of kept pairs.",
    ),
    dg.AssetCheckSpec(
        asset=keys.FILTERED_DATASET,
        name="lineage_verifies_from_files",
        description="Walks the manifests from the dataset to the index of every landed shard; compares digests.",
    ),
    dg.AssetCheckSpec(
        asset=keys.FILTERED_DATASET,
        name="no_group_is_removed_far_more_than_the_rest",
        description="Domains, caption lengths and resolutions of which far less is kept than of all candidates.",
    ),
]


def dataset_meets_expectations(artifact: Artifact) -> dg.AssetCheckResult:
    """Every occurrence is decided once, on the right side of its budget's cut; places and ids are readable."""
    import great_expectations.expectations as gxe

    with duckdb.connect() as connection:
        connection.execute("set enable_progress_bar = false")
        create_views(connection, Version.open(artifact))
        shards = connection.sql(_SHARDS, params=[list(reasons.ORDER)]).to_arrow_table()
        connection.execute("set threads = 1")  # a sample of several threads is another one each time
        kept = connection.sql(_KEPT_SAMPLE).to_arrow_table()
    expectations = [
        gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[0])
        for column in ("repeated", "unknown_reasons", "kept_below_cut", "dropped_above_cut")
    ]
    frames: list[tuple[str, pa.Table, str, list[Any]]] = [
        ("shards", shards, f"all {artifact.facts['pairs']:,} pairs, aggregated per shard", expectations)
    ]
    if artifact.facts["kept"]:
        shapes = [
            gxe.ExpectColumnValuesToMatchRegex(column="pair_id", regex="^[0-9a-f]{32}$"),
            gxe.ExpectColumnValuesToBeBetween(column="image_length", min_value=1),
            gxe.ExpectColumnValuesToNotBeNull(column="reward"),
        ]
        frames.append(("kept", kept, f"{kept.num_rows:,} kept pairs, a seeded sample of all", shapes))
    return validate(frames, name="dataset_meets_expectations", severity=dg.AssetCheckSeverity.ERROR)


def lineage_verifies(artifact: Artifact) -> dg.AssetCheckResult:
    """Every input that a manifest names exists and is what it was."""
    problems = verify(artifact)
    return dg.AssetCheckResult(
        check_name="lineage_verifies_from_files",
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"problems": problems_list(problems)},
    )


def groups_are_kept_alike(artifact: Artifact, least: float) -> dg.AssetCheckResult:
    """Warns of groups whose kept share is below `least` times that of all candidates, with figures."""
    from compalign_dagster.selection.fairness import unequal
    from compalign_dagster.selection.whatif import what_if

    version = Version.open(artifact)
    found = [str(group) for group in unequal(what_if(version, version.policy), least)]
    return dg.AssetCheckResult(
        check_name="no_group_is_removed_far_more_than_the_rest",
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        description=found[0] if found else f"every group keeps at least {least:g} times the overall share",
        metadata={"groups": len(found), "problems": problems_list(found)},
    )
