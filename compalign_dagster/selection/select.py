"""The decision in memory: exactly as many pairs as the policy says, the same ones in whatever order scores arrive.

What belongs here: reading scores, and the cut over one frame, for samples, files and evaluation. What does
not: rules and caps, and a crawl that does not fit into memory (`ranked.py`, `cut.py`).

A pair outranks another by higher reward, then by smaller (pair_id, shard, key, caption_index), compared
as bytes. The order is total over occurrences, so file order, batching and row groups cannot matter.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import polars as pl

from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.selection.policy import REST, Policy
from compalign_dagster.selection.reasons import BELOW_CUT, NO_BUDGET, TIED_AT_CUT

OCCURRENCE = ["shard", "key", "caption_index"]
TIE_BREAK = ["pair_id", *OCCURRENCE]
_NEEDED = [*TIE_BREAK, "reward", "model_version"]
_NAMES_SHOWN = 3


def decide(scores: Sequence[Path], policy: Policy) -> pl.DataFrame:
    """Every scored pair with the decision about it, sorted by (shard, key, caption_index).

    Columns: `pair_id, shard, key, caption_index, corpus, reward` (float32), `model_version, budget,
    kept` (bool), `reason` (null when kept). Raises `InputError` for scores that cannot be decided on:
    see `read_scores`.
    """
    return choose(read_scores(scores), policy)


def read_scores(scores: Sequence[Path], extra: Sequence[str] = ()) -> pl.DataFrame:
    """The scores of all files, without captions; `extra` names further columns to carry along.

    Raises `InputError`, naming file and pair, for a file that is no score table, a reward that is not
    finite, rewards of more than one model, and an occurrence that is scored twice.
    """
    paths = sorted({path.absolute() for path in scores})
    return merge_scores({str(path): path for path in paths}, extra)


def merge_scores(sources: Mapping[str, Path | BinaryIO], extra: Sequence[str] = ()) -> pl.DataFrame:
    """As `read_scores`, of named sources."""
    if not sources:
        raise InputError("scores", expected="at least one file", found="none", remedy="Score some shards first.")
    frames = {name: _read(name, source, extra) for name, source in sources.items()}
    _refuse_second_model(frames)
    frame = pl.concat(frames.values())
    twice = frame.filter(frame.select(OCCURRENCE).is_duplicated()).sort(OCCURRENCE)
    if twice.height:
        shard, key, index = twice.select(OCCURRENCE).row(0)
        raise InputError(
            f"scores of {shard}, sample {key}, caption {index}",
            expected="one score for each occurrence",
            found=f"{twice.height} scores for {twice.select(OCCURRENCE).n_unique()} occurrences",
            remedy="Give each shard's scores once.",
        )
    return frame


def choose(frame: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """The decision on scores as `read_scores` returns them. Exactly k of each budget are kept."""
    budgets = [*policy.per_corpus, *policy.count_per_corpus]
    frame = frame.with_columns(budget=pl.when(pl.col("corpus").is_in(budgets)).then("corpus").otherwise(pl.lit(REST)))
    sizes = dict(frame.group_by("budget").len().iter_rows())
    counts = {budget: policy.count_of(budget, n) for budget, n in sizes.items()}
    ranked = ranked_by(frame, "reward").with_columns(
        rank=pl.int_range(pl.len()).over("budget"),
        k=pl.col("budget").replace_strict(counts, return_dtype=pl.Int64) if counts else pl.lit(0),
    )
    kept = pl.col("rank") < pl.col("k")
    cut = pl.col("reward").filter(kept).min().over("budget")
    decided = ranked.with_columns(
        kept=kept,
        reason=pl.when(kept)
        .then(None)
        .when(pl.col("k") == 0)
        .then(pl.lit(NO_BUDGET))
        .when(pl.col("reward") == cut)
        .then(pl.lit(TIED_AT_CUT))
        .otherwise(pl.lit(BELOW_CUT)),
    )
    found = dict(decided.group_by("budget").agg(pl.col("kept").sum()).iter_rows())
    if found != counts or decided.height != frame.height:
        raise ConservationError(
            "selection",
            expected=f"{counts} kept of {frame.height} pairs",
            found=f"{found} kept of {decided.height}",
            remedy="This is a defect of the selection; please report it.",
        )
    return decided.drop("rank", "k").with_columns(pl.col("reward").cast(pl.Float32)).sort(OCCURRENCE)


def ranked_by(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Rows from best to worst by a score column, with the selection's tie-break. No NaN, no null."""
    return frame.sort([column, *TIE_BREAK], descending=[True, *[False] * len(TIE_BREAK)])


def _read(path: str, source: Path | BinaryIO, extra: Sequence[str]) -> pl.DataFrame:
    try:
        columns = pl.read_parquet_schema(source)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"scores {path}",
            expected="a Parquet table",
            found=str(error).splitlines()[0],
            remedy="Score the shard again.",
        ) from None
    missing = [name for name in [*_NEEDED, *extra] if name not in columns]
    if missing:
        raise InputError(
            f"scores {path}",
            expected=f"the columns {', '.join([*_NEEDED, *extra])}",
            found=f"no {', '.join(missing)}",
            remedy="Give tables written by `compalign score`.",
        )
    corpus = pl.col("corpus") if "corpus" in columns else _corpus_of_shard()
    frame = pl.scan_parquet(source).select(
        pl.col("pair_id", "shard", "key").cast(pl.String),
        pl.col("caption_index").cast(pl.Int32),
        corpus.cast(pl.String).alias("corpus"),
        _without_minus_zero(pl.col("reward").cast(pl.Float64)),  # which holds a float32 exactly
        pl.col("model_version").cast(pl.String),
        *(pl.col(name) for name in extra),
    )
    table = frame.collect()
    _refuse_unrankable(path, table)
    return table


def _without_minus_zero(value: pl.Expr) -> pl.Expr:
    """-0.0 and 0.0 are one reward, so they are one value in files too."""
    return pl.when(value == 0).then(pl.lit(0.0)).otherwise(value).alias("reward")


def _corpus_of_shard() -> pl.Expr:
    folder = pl.col("shard").str.split("/").list.first()
    return pl.when(pl.col("shard").str.contains("/", literal=True)).then(folder).otherwise(pl.lit("crawl"))


def _refuse_unrankable(path: str, table: pl.DataFrame) -> None:
    broken = table.filter(pl.col("reward").is_finite().fill_null(False).not_()).sort(TIE_BREAK)
    if broken.height:
        first = broken.row(0, named=True)
        raise InputError(
            f"reward of pair {first['pair_id']} ({first['shard']}, sample {first['key']}, caption "
            f"{first['caption_index']}) in {path}",
            expected="a finite number",
            found=f"{first['reward']}, and {broken.height} such rewards in this file",
            remedy="Score the shard again: scoring quarantines such pairs.",
        )
    nameless = table.filter(pl.any_horizontal(pl.col([*TIE_BREAK, "corpus", "model_version"]).is_null()))
    if nameless.height:
        raise InputError(
            f"scores {path}",
            expected="a pair, a place and a model version in every row",
            found=f"{nameless.height} rows without",
            remedy="Score the shard again.",
        )


def _refuse_second_model(frames: Mapping[str, pl.DataFrame]) -> None:
    found: dict[str, str] = {}
    for path, frame in frames.items():
        for version in frame["model_version"].unique().sort():
            found.setdefault(version, path)
    if len(found) > 1:
        shown = [f"{version[:12]} in {path}" for version, path in list(found.items())[:_NAMES_SHOWN]]
        raise InputError(
            "scores",
            expected="the rewards of one model, for rewards of two models do not compare",
            found=f"{len(found)} model versions: {'; '.join(shown)}",
            remedy="Score every shard with one model, or give only one model's scores.",
        )
