"""Great Expectations inside asset checks: one validation, one result.

Two kinds of frame are given to it: a complete aggregate (one row per shard, made by DuckDB or read
from the index), so that every row is covered, and a seeded sample of at most `SAMPLE_ROWS` rows for
the shapes of values. The result says which. Conservation, uniqueness and NaN are exact SQL elsewhere.
"""

import random
from collections.abc import Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

SAMPLE_ROWS = 50_000


def seeded_sample(table: pa.Table, *, seed: int = 0) -> tuple[pa.Table, str]:
    """At most `SAMPLE_ROWS` rows, the same ones for the same table, and words for what they are."""
    if table.num_rows <= SAMPLE_ROWS:
        return table, f"all {table.num_rows:,} rows"
    chosen = sorted(random.Random(seed).sample(range(table.num_rows), SAMPLE_ROWS))
    return table.take(chosen), f"a seeded sample of {SAMPLE_ROWS:,} of {table.num_rows:,} rows"


def validate(
    frames: Sequence[tuple[str, pa.Table, str, Sequence[Any]]],
    *,
    severity: dg.AssetCheckSeverity,
    may_be_empty: bool = False,
    name: str | None = None,
) -> dg.AssetCheckResult:
    """Validate frames; each is (name, table, what it covers, expectations).

    An empty table fails, because expectations about rows prove nothing then, unless it is known to be right
    (`may_be_empty`), as for a batch that only removes shards.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("frames")
    problems, evaluated = [], 0
    for frame, table, covers, expectations in frames:
        if table.num_rows == 0:
            problems += [] if may_be_empty else [f"{frame}: no rows"]
            continue
        batch = (
            source.add_dataframe_asset(frame)
            .add_batch_definition_whole_dataframe("all")
            .get_batch(batch_parameters={"dataframe": table.to_pandas()})
        )
        suite = gx.ExpectationSuite(name=frame, expectations=list(expectations))
        for result in batch.validate(suite, result_format="SUMMARY").results:
            evaluated += 1
            if not result.success:
                problems.append(f"{frame} ({covers}): {_sentence(result)}")
    return dg.AssetCheckResult(
        check_name=name,
        passed=not problems,
        severity=severity,
        description=problems[0] if problems else f"{evaluated} expectations hold",
        metadata={
            "expectations": evaluated,
            "covers": dg.MetadataValue.md("\n".join(f"- {frame}: {covers}" for frame, _, covers, _ in frames)),
            "problems": dg.MetadataValue.md("\n".join(f"- {text}" for text in problems) or "none"),
        },
    )


def _sentence(result: Any) -> str:
    """What was expected, and an example of what was found."""
    configuration = result.expectation_config
    wanted = {key: value for key, value in configuration.kwargs.items() if key != "batch_id"}
    found = result.result.get("partial_unexpected_list") or result.result.get("observed_value")
    return f"{configuration.type} {wanted}: found {str(found)[:200]}"
