"""The filtered dataset: kept and dropped pairs with their places, the facts about them, what to look at.

What belongs here: joining a decision with the pair index, and summaries of it. What does not: the
decision (`select.py`), new tars (`resharding.py`), pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.select import TIE_BREAK, ranked_by
from compalign_dagster.selection.tables import DROPPED, KEPT, SELECTION

_INDEX = [*TIE_BREAK, "caption", "image_offset", "image_length"]
_READING_ORDER = ["shard", "image_offset", "caption_index", "key"]


@dataclass(frozen=True)
class FilteredDataset:
    """Kept pairs in reading order (by place in the shard), dropped pairs by (shard, key, caption_index)."""

    kept: pa.Table  # KEPT
    dropped: pa.Table  # DROPPED
    facts: dict[str, Any]  # JSON values, see `summary`


def build(decided: pl.DataFrame, pairs: Sequence[Path], policy: Policy, *, quarantined: int = 0) -> FilteredDataset:
    """The dataset that a decision makes of the indexed `pairs`.

    `decided` comes from `select.decide`; `pairs` are the index tables of the scored shards, and
    `quarantined` is how many of their pairs scoring refused. Raises `InputError` when the index does
    not hold a decided pair, `ConservationError` unless pairs = kept + dropped + quarantined.
    """
    indexed = sum(pl.scan_parquet(path).select(pl.len()).collect().item() for path in set(pairs))
    if indexed != decided.height + quarantined:
        raise ConservationError(
            "filtered dataset",
            expected=f"{indexed} pairs = kept + dropped + quarantined",
            found=f"{decided.height} decided and {quarantined} quarantined by scoring",
            remedy="Index and score the same shards, each once.",
        )
    kept = with_places(decided.filter("kept"), pairs).sort(_READING_ORDER)
    dropped = decided.filter(~pl.col("kept"))
    return FilteredDataset(
        as_table(kept, KEPT),
        as_table(dropped, DROPPED),
        {**summary(decided, policy), "pairs": indexed, "quarantined": quarantined},
    )


def selection_table(decided: pl.DataFrame) -> pa.Table:
    """The kept rows as `compalign keep` writes them, sorted by (shard, key, caption_index)."""
    return as_table(decided.filter("kept"), SELECTION)


def summary(decided: pl.DataFrame, policy: Policy) -> dict[str, Any]:
    """What a decision did: counts in all, by reason, by budget (with the cut) and by corpus.

    `cut` is the lowest kept reward, `first_dropped` the highest reward that was dropped.
    """
    kept, dropped = decided.filter("kept"), decided.filter(~pl.col("kept"))
    reasons = dropped.group_by("reason").len().sort("reason")
    corpora = decided.group_by("corpus").agg(pl.len().alias("n"), pl.col("kept").sum()).sort("corpus")
    versions = decided["model_version"].unique().to_list()
    return {
        "scored": decided.height,
        "kept": kept.height,
        "dropped": dropped.height,
        "dropped_by_reason": dict(reasons.iter_rows()),
        "budgets": [_budget(decided, policy, name) for name in decided["budget"].unique().sort()],
        "budgets_without_pairs": sorted(set(policy.per_corpus) - set(decided["corpus"])),
        "corpora": {row["corpus"]: {"pairs": row["n"], "kept": row["kept"]} for row in corpora.to_dicts()},
        "images_kept": kept.select("shard", "key").n_unique(),
        "mean_reward_kept": _mean(kept),
        "mean_reward_dropped": _mean(dropped),
        "model_version": versions[0] if versions else None,
    }


def histogram(decided: pl.DataFrame, bins: int = 60) -> dict[str, list]:
    """Rewards in equal bins: `edges` [bins + 1], and `kept`, `dropped` counts [bins]."""
    rewards = decided["reward"].to_numpy()
    kept = decided["kept"].to_numpy()
    if not len(rewards):
        return {"edges": [], "kept": [], "dropped": []}
    edges = np.histogram_bin_edges(rewards.astype(np.float64), bins)
    return {
        "edges": edges.tolist(),
        "kept": np.histogram(rewards[kept], edges)[0].tolist(),
        "dropped": np.histogram(rewards[~kept], edges)[0].tolist(),
    }


def examples(
    decided: pl.DataFrame, pairs: Sequence[Path], count: int = 24, *, seed: int = 7
) -> dict[str, list[dict[str, Any]]]:
    """Pairs worth a look, with caption and place: `kept` and `dropped` at random, `above`, `below` the cut.

    Each list has at most `count` rows in falling order of reward; `above` holds the last kept pairs and
    `below` the first dropped ones of the largest budget.
    """
    ranked = ranked_by(decided, "reward")
    sizes = decided.group_by("budget").len().sort(["len", "budget"], descending=[True, False])
    largest = ranked.filter(pl.col("budget") == (sizes["budget"][0] if sizes.height else ""))
    chosen = {
        "kept": _sample(ranked.filter("kept"), count, seed),
        "dropped": _sample(ranked.filter(~pl.col("kept")), count, seed),
        "above": largest.filter("kept").tail(count),
        "below": largest.filter(~pl.col("kept")).head(count),
    }
    return {name: ranked_by(with_places(rows, pairs), "reward").to_dicts() for name, rows in chosen.items()}


def as_table(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The schema's columns of a frame, with its types and meanings."""
    return frame.select(schema.names).to_arrow().cast(schema)


def with_places(rows: pl.DataFrame, pairs: Sequence[Path], extra: Sequence[str] = ()) -> pl.DataFrame:
    """Rows with caption, image place and `extra` columns of the pair index, in no particular order.

    Raises `InputError` unless the index holds each row once. One index table is in memory at a time.
    """
    index = [pl.scan_parquet(path) for path in sorted(set(pairs))]
    found = [scan.select(*_INDEX, *extra).join(rows.lazy(), on=TIE_BREAK).collect() for scan in index]
    table = pl.concat(found) if found else rows.clear()
    if table.height != rows.height:
        missing = rows.join(table, on=TIE_BREAK, how="anti").sort(TIE_BREAK) if found else rows
        what = missing["pair_id"][0] if missing.height else "of a shard that is indexed twice"
        raise InputError(
            f"pair {what}",
            expected="one row in the pair index",
            found=f"{table.height} rows for {rows.height} scored pairs",
            remedy="Index the shards the scores were made from, each once.",
        )
    return table


def _budget(decided: pl.DataFrame, policy: Policy, name: str) -> dict[str, Any]:
    rows = decided.filter(pl.col("budget") == name)
    kept = rows.filter("kept")
    return {
        "budget": name,
        "fraction": format(Decimal(policy.fraction_of(name)), "f"),
        "n": rows.height,
        "k": kept.height,
        "cut": kept["reward"].min(),
        "first_dropped": rows.filter(~pl.col("kept"))["reward"].max(),
        "tied_at_cut": rows.filter(pl.col("reason") == "tied_at_cut").height,
    }


def _mean(rows: pl.DataFrame) -> float | None:
    mean = rows["reward"].cast(pl.Float64).mean()
    return None if mean is None else round(float(mean), 6)  # type: ignore[arg-type]


def _sample(rows: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """Rows drawn without replacement; the draw depends on the rows, not on the polars release."""
    picked = np.random.default_rng(seed).permutation(rows.height)[:count]
    return rows[np.sort(picked).tolist()]
