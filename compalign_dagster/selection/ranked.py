"""A batch's pairs in the order in which a cut takes them: the ranked list, which no cut changes.

The order is total over occurrences: higher reward first, then smaller (pair_id, shard, key, caption_index),
compared as bytes. So what a cut keeps of a batch is a prefix of its list, whatever the batches around it.
What belongs here: making and publishing one batch's list. What does not: where the cut is (`cut.py`), caps
over the whole crawl (`caps.py`).
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.hosts import hosts_of
from compalign_dagster.selection import reasons
from compalign_dagster.selection.counts import bins, groups, histogram
from compalign_dagster.selection.policy import Rules
from compalign_dagster.selection.sampling import Sampling
from compalign_dagster.selection.select import OCCURRENCE, TIE_BREAK, merge_scores
from compalign_dagster.selection.tables import GROUPS, HISTOGRAM, IDS, RANKED
from compalign_dagster.store import Store
from compalign_dagster.versions import digest_json, work_key

KIND = "ranked_pairs"
CODE_VERSION = 2
ROW_GROUP_ROWS = 16_384  # what is read to look at the rows around a cut

_INDEX = [*TIE_BREAK, "image_offset", "image_length", "caption_characters", "width", "height"]


@dataclass(frozen=True)
class RankedList:
    """A batch's list and what is counted of it."""

    ranked: pl.DataFrame  # RANKED
    histogram: pl.DataFrame  # HISTOGRAM
    groups: pl.DataFrame  # GROUPS
    ids: pl.DataFrame  # IDS
    facts: dict[str, Any]


def publish_list(
    store: Store,
    batch: str,
    rows: Sequence[Mapping[str, Any]],
    rules: Rules,
    *,
    blocked: pl.DataFrame | None = None,
    signals: Artifact | None = None,
) -> tuple[Artifact, bool]:
    """The ranked list of a batch's scored shards, and whether it was there already.

    `rows` are the ledger's (LEDGER), `blocked` the block list's matches among the batch's pairs (shard, key,
    caption_index, reason), `signals` the batch's caption signals, needed when the rules name languages.
    Raises `InputError` for scores that cannot be ranked or are not of these pairs, `ConservationError` where a
    pair is neither scored, rejected nor quarantined.
    """
    rows = sorted(rows, key=lambda row: row["shard"])
    languages = _languages_of(batch, rules, signals)
    key = key_of(rows, rules, blocked, languages)
    found = artifacts.find(store, KIND, key, batch)
    if found:
        return found, True
    made = read_and_build(store, rows, rules, blocked, languages)
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            "ranked": (made.ranked, RANKED),
            "histogram": (made.histogram, HISTOGRAM),
            "groups": (made.groups, GROUPS),
            "ids": (made.ids, IDS),
        }
        files = {
            f"{name}.parquet": parquet.write(
                as_table(frame, schema), Path(folder, f"{name}.parquet"), row_group_rows=ROW_GROUP_ROWS
            )
            for name, (frame, schema) in tables.items()
        }
        artifact = artifacts.publish(
            store,
            KIND,
            key,
            files,
            code_version=CODE_VERSION,
            inputs=[
                *(Input("scored_shards_shards", row["scores_key"], row["data_version"]) for row in rows),
                *(Input("raw_crawl_shards", row["pairs_key"], row["index_version"]) for row in rows),
                *([languages.as_input()] if languages else []),
            ],
            config=rules.model_dump(mode="json"),
            facts={"batch": batch, **made.facts},
            partition=batch,
        )
    return artifact, False


def read_and_build(
    store: Store,
    rows: Sequence[Mapping[str, Any]],
    rules: Rules,
    blocked: pl.DataFrame | None,
    languages: Artifact | None,
) -> RankedList:
    """The list that `publish_list` makes of ledger rows, sorted by shard; publishes nothing."""
    return build(
        _scores(store, rows, rules),
        _pairs(store, rows, rules),
        rules,
        blocked=blocked,
        languages=_table_of(languages) if languages else None,
        quarantined=sum(row["quarantined"] for row in rows),
    )


def key_of(
    rows: Sequence[Mapping[str, Any]], rules: Rules, blocked: pl.DataFrame | None, languages: Artifact | None
) -> str:
    """The work key of the list that `publish_list` makes of ledger rows, sorted by shard."""
    return work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[
            [[row["shard"], row["index_version"], row["data_version"]] for row in rows],
            digest_json(blocked.rows()) if blocked is not None and blocked.height else None,
            languages.data_version if languages else None,
        ],
        config=rules.model_dump(mode="json"),
    )


def build(
    scores: pl.DataFrame,
    pairs: pl.DataFrame,
    rules: Rules,
    *,
    blocked: pl.DataFrame | None = None,
    languages: pl.DataFrame | None = None,
    quarantined: int = 0,
) -> RankedList:
    """The list of one batch, from frames.

    `scores`: `pair_id, shard, key, caption_index, corpus, reward` (null where a cascade gave none) and the
    figures that the rules have floors for; `pairs`: the pair index of the same shards; both in any order.
    """
    if pairs.height != scores.height + quarantined:
        raise ConservationError(
            "ranked list",
            expected=f"{pairs.height} pairs = scored + rejected + quarantined",
            found=f"{scores.height} scored or rejected and {quarantined} quarantined",
            remedy="Index and score the same shards, each once.",
        )
    frame = _with_places(scores, pairs)
    _require_languages(frame, languages)
    frame = _with_marks(frame, blocked, "blocked", OCCURRENCE)
    frame = _with_marks(frame, languages, "language", TIE_BREAK)
    ranked = (
        frame.with_columns(
            reason=_reason(rules), domain=hosts_of(frame["url"]), reward=pl.col("reward").cast(pl.Float32)
        )
        .sort(
            ["corpus", pl.col("reason").is_not_null(), "reward", *TIE_BREAK],
            descending=[False, False, True, *[False] * len(TIE_BREAK)],
            nulls_last=True,
        )
        .select(RANKED.names)
    )
    return counted(ranked, quarantined)


def as_table(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The schema's columns of a frame, with its types and meanings."""
    return frame.select(schema.names).to_arrow().cast(schema)


def counted(ranked: pl.DataFrame, quarantined: int) -> RankedList:
    """The list of rows (RANKED) in their order, with what is counted of them."""
    at = ranked.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    segments = (
        at.group_by("corpus", maintain_order=True)
        .agg(start=pl.col("row").min(), rows=pl.len(), eligible=pl.col("reason").is_null().sum())
        .to_dicts()
    )
    candidates = ranked.filter(pl.col("reason").is_null())
    candidates = candidates.with_columns(bin=pl.Series(bins(candidates["reward"].to_numpy()), dtype=pl.UInt32))
    refused = ranked.filter(pl.col("reason").is_not_null())
    return RankedList(
        ranked,
        histogram(candidates),
        groups(candidates),
        at.select("pair_id", "row").sort("pair_id", "row"),
        {
            "pairs": ranked.height + quarantined,
            "quarantined": quarantined,
            "rows": ranked.height,
            "eligible": candidates.height,
            "reasons": dict(refused.group_by("reason").len().sort("reason").iter_rows()),
            "segments": segments,
        },
    )


def _reason(rules: Rules) -> pl.Expr:
    """The first of `reasons.ORDER` that a pair's own facts give; null for a candidate."""
    scored = pl.col("reward").is_not_null()
    found = [pl.col("blocked")]
    if rules.languages:
        foreign = pl.col("language").is_in(list(rules.languages)).not_()
        found.append(_when(foreign.fill_null(rules.unknown_language == "drop"), reasons.LANGUAGE))
    found += [
        _when(pl.col("caption").str.contains(f"(?i){pattern}"), reasons.CAPTION_PATTERN)
        for pattern in rules.caption_patterns
    ]
    for name, floor in rules.floors.items():
        reaches = pl.col(name).fill_nan(None).cast(pl.Float64) >= floor
        found.append(_when(scored & reaches.fill_null(False).not_(), reasons.FLOOR))
    if rules.reward_floor is not None:
        found.append(_when(pl.col("reward") < rules.reward_floor, reasons.REWARD_FLOOR))
    if rules.sampling is not None:
        found.append(_when(_not_sampled(rules.sampling), reasons.NOT_SAMPLED))
    return pl.coalesce([*found, _when(scored.not_(), reasons.CASCADE_REJECT)])


def _not_sampled(sampling: Sampling) -> pl.Expr:
    """Whether a pair's number reaches its chance; only where that is neither 0 nor 1 is a number needed.

    As number x (full - floor) >= reward - floor, in float64, each step rounded as IEEE 754 says: without a division,
    for libraries divide by a constant by multiplying.
    """
    reward = pl.col("reward").cast(pl.Float64)
    undecided = reward.is_between(sampling.floor, sampling.full, closed="left")
    number = pl.when(undecided).then("pair_id").map_elements(sampling.number, return_dtype=pl.Float64)
    missed = number * (sampling.full - sampling.floor) >= reward - sampling.floor
    return pl.when(undecided).then(missed).otherwise(reward < sampling.floor)


def _when(condition: pl.Expr, reason: str) -> pl.Expr:
    return pl.when(condition).then(pl.lit(reason))


def _with_places(scores: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    joined = scores.join(pairs, on=TIE_BREAK, how="inner")
    if joined.height != scores.height:
        missing = scores.join(pairs, on=TIE_BREAK, how="anti").sort(TIE_BREAK)
        what = f"pair {missing['pair_id'][0]}" if missing.height else "a pair of a shard that is indexed twice"
        raise InputError(
            what,
            expected="one row in the pair index",
            found=f"{joined.height} rows for {scores.height} scored pairs",
            remedy="Index the shards the scores were made from, each once.",
        )
    return joined


def _require_languages(frame: pl.DataFrame, languages: pl.DataFrame | None) -> None:
    """A caption that the signals do not know must not count as one without a language."""
    unknown = frame.join(languages, on=TIE_BREAK, how="anti") if languages is not None else frame.clear()
    if unknown.height:
        raise InputError(
            "languages of captions",
            expected="caption signals of every pair",
            found=f"none of {unknown.height:,} pairs, such as {unknown.sort(TIE_BREAK)['pair_id'][0]}",
            remedy="They are older than the batch's index: materialise caption_signals for the batch again.",
        )


def _with_marks(frame: pl.DataFrame, marks: pl.DataFrame | None, name: str, on: list[str]) -> pl.DataFrame:
    """One more column, null where nothing is said of a row."""
    if marks is None:
        return frame.with_columns(pl.lit(None, pl.String).alias(name))
    value = next(column for column in marks.columns if column not in TIE_BREAK)
    return frame.join(marks.select(*on, pl.col(value).alias(name)), on=on, how="left", validate="m:1")


def _scores(store: Store, rows: Sequence[Mapping[str, Any]], rules: Rules) -> pl.DataFrame:
    extra = sorted({"human_fit", *rules.floors})
    sources = {f"{store.url}/{row['scores_key']}": io.BytesIO(store.read(row["scores_key"])) for row in rows}
    scored = merge_scores(sources, extra).drop("model_version")
    keys = [row["rejected_key"] for row in rows if row.get("rejected_key")]
    if not keys:
        return scored
    rejected = pl.concat([pl.read_parquet(io.BytesIO(store.read(key))) for key in keys])
    return pl.concat([scored, rejected.select(*TIE_BREAK, "corpus")], how="diagonal")


def _pairs(store: Store, rows: Sequence[Mapping[str, Any]], rules: Rules) -> pl.DataFrame:
    columns = [*_INDEX, "url", *(["caption"] if rules.caption_patterns else [])]
    return pl.concat([pl.read_parquet(io.BytesIO(store.read(row["pairs_key"])), columns=columns) for row in rows])


def _languages_of(batch: str, rules: Rules, signals: Artifact | None) -> Artifact | None:
    if not rules.languages:
        return None
    if signals is None or not signals.manifest["config"]["language_model"]:
        raise InputError(
            f"languages of {batch}",
            expected="caption signals, for the policy names languages",
            found="none" if signals is None else "signals made without the language model",
            remedy="Install the extra `signals` and materialise caption_signals for the batch.",
        )
    return signals


def _table_of(signals: Artifact) -> pl.DataFrame:
    read = [pl.read_parquet(io.BytesIO(signals.store.read(signals.file_key(name)))) for name in signals.names()]
    return pl.concat([frame.select(*TIE_BREAK, "language") for frame in read])
