"""Making a version: every pair of the crawl decided on, with memory that follows one batch.

What belongs here: which lists a decision takes, its cut in every budget, and publishing it. What does not:
making a list (`ranked.py`), finding a cut among lists (`cut.py`), reading a version (`version.py`).
"""

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.selection import blocked, blocks, caps, ranked
from compalign_dagster.selection.accounts import accounts
from compalign_dagster.selection.cut import Cut, Segment, find_cut
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.tables import CUTS, LISTS, SHARDS_USED
from compalign_dagster.selection.version import TABLES, Version, frame_of
from compalign_dagster.selection.versions import KIND
from compalign_dagster.store import Store
from compalign_dagster.versions import canonical_json, work_key

CODE_VERSION = 4

NO_BINS = np.empty(0, np.uint32), np.empty(0, np.uint32)

_SIGNALS = "caption_signals"


def key_with(
    others: Mapping[str, Artifact], rows: Sequence[Mapping[str, Any]], policy: Policy, config: Mapping[str, Any]
) -> str:
    """The work key of the version that a policy makes of ledger `rows` and of `others_of` them, known before the work.

    `config` is what else changes the artifact's bytes.
    """
    return work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[
            sorted([row["shard"], row["batch"], row["index_version"], row["data_version"]] for row in rows),
            {name: artifact.data_version for name, artifact in others.items()},
        ],
        config={"policy": policy.model_dump(mode="json"), **config},
    )


def decide(
    store: Store,
    rows: Sequence[Mapping[str, Any]],
    policy: Policy,
    others: Mapping[str, Artifact] | None = None,
) -> Version:
    """Decide on every pair of the scored shards that the ledger `rows` name, all of one model.

    Publishes the ranked lists that are not there yet; memory follows one batch, and the rows around the cut.
    Who publishes the version gives the `others` that its work key was made of: they may change meanwhile.
    """
    others = others_of(store, rows, policy) if others is None else others
    lists, reused = _lists(store, rows, policy, others)
    made = {"lists": {"made": len(lists) - reused, "reused": reused}}
    inputs = [*(artifact.as_input() for artifact in lists.values()), *(item.as_input() for item in others.values())]
    decided = decide_on(store, rows, policy, lists, others)
    return replace(decided, facts={**decided.facts, **made}, inputs=inputs)


def decide_on(
    store: Store,
    rows: Sequence[Mapping[str, Any]],
    policy: Policy,
    lists: Mapping[str, Artifact],
    others: Mapping[str, Artifact],
) -> Version:
    """The decision on ranked lists that are there, by batch, and `others_of` them; publishes nothing."""
    taken_away = caps.capped(lists, policy, others)
    segments = [
        {**segment, "batch": batch, "budget": policy.budget_of(segment["corpus"])}
        for batch, artifact in lists.items()
        for segment in artifact.facts["segments"]
    ]
    cuts = {}
    for budget in sorted({segment["budget"] for segment in segments}):
        of = [segment for segment in segments if segment["budget"] == budget]
        k = policy.count_of(budget, sum(segment["rows"] for segment in of))
        cuts[budget] = (k, find_cut(_segments(lists, of, taken_away), k))
        for segment, taken in zip(of, cuts[budget][1].taken, strict=True):
            segment["taken"] = taken
    listed = _listed(lists, segments, taken_away)
    table = _cuts(policy, segments, cuts)
    facts = accounts(lists, listed, table, taken_away, policy)
    return Version(store, policy, listed, table, taken_away, _shards_used(rows), facts, rows=rows)


def publish(
    version: Version,
    ledger: Artifact,
    key: str,
    *,
    config: Mapping[str, Any],
    files: Mapping[str, bytes | Path] | None = None,
    views: Mapping[str, bytes] | None = None,
) -> Artifact:
    """Publish a decided version under its work key; `config`, `files` and `views` are added to its own."""
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            f"{name}.parquet": parquet.write(
                ranked.as_table(getattr(version, name), schema), Path(folder, f"{name}.parquet")
            )
            for name, schema in TABLES.items()
        }
        policy = version.policy.model_dump(mode="json")
        return artifacts.publish(
            version.store,
            KIND,
            key,
            {**tables, "policy.json": canonical_json(policy), **(files or {})},
            code_version=CODE_VERSION,
            inputs=[ledger.as_input(), *version.inputs],
            config={"policy": policy, **config},
            facts=version.facts,
            views=views,
        )


def others_of(store: Store, rows: Sequence[Mapping[str, Any]], policy: Policy) -> dict[str, Artifact]:
    """What a decision reads besides scores: `block_list`, `caption_signals/<batch>`, `caps.KINDS`."""
    found: dict[str, Artifact | None] = {blocks.KIND: blocks.in_force(store)}
    if policy.languages:
        for batch in sorted({row["batch"] for row in rows}):
            found[f"{_SIGNALS}/{batch}"] = latest.latest(store, _SIGNALS, batch)
    found |= {kind: groups_of(store, rows, kind) for kind in caps.needed(policy)}
    return {name: artifact for name, artifact in found.items() if artifact is not None}


def groups_of(store: Store, rows: Sequence[Mapping[str, Any]], kind: str) -> Artifact | None:
    """The newest artifact of one of `caps.KINDS`, if it was made of exactly these shards."""
    groups = latest.latest(store, kind)
    ledger = artifacts.load(store, groups.inputs[0].key) if groups else None
    if ledger is None:
        return None
    made_of = parquet.read(ledger.fetch("ledger.parquet"), ["shard", "index_version"]).to_pylist()
    theirs = {(row["shard"], row["index_version"]) for row in made_of}
    return groups if theirs == {(row["shard"], row["index_version"]) for row in rows} else None


def _lists(
    store: Store, rows: Sequence[Mapping[str, Any]], policy: Policy, others: Mapping[str, Artifact]
) -> tuple[dict[str, Artifact], int]:
    """The ranked list of each batch, sorted by batch, and how many were there already."""
    by_batch: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_batch[row["batch"]].append(row)
    block_list = others.get(blocks.KIND)
    entries = blocks.entries(block_list)
    lists, reused = {}, 0
    for batch in sorted(by_batch):
        lists[batch], was_there = ranked.publish_list(
            store,
            batch,
            by_batch[batch],
            policy.rules(),
            blocked=blocked.of_batch(store, batch, by_batch[batch], block_list, entries),
            signals=others.get(f"{_SIGNALS}/{batch}"),
        )
        reused += was_there
    return lists, reused


def _segments(
    lists: Mapping[str, Artifact], of: Sequence[Mapping[str, Any]], taken_away: pl.DataFrame
) -> list[Segment]:
    """Of a histogram stay 8 bytes for each bin; one batch's is read at a time."""
    rows_of, found = _rows_of(taken_away), []
    for batch, segments in groupby(of, key=itemgetter("batch")):
        bins = bins_of(lists[batch])
        for segment in segments:
            start, eligible = segment["start"], segment["eligible"]
            rows = _between(rows_of.get(batch), start, start + eligible)
            found.append(Segment(lists[batch], start, eligible, *bins.get(segment["corpus"], NO_BINS), rows))
    return found


def bins_of(artifact: Artifact) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A list's bins, falling, and the candidates in each, uint32 both, by corpus, in the list's order."""
    frame = frame_of(artifact, "histogram.parquet", ["corpus", "bin", "pairs"])
    bins, pairs, start, found = frame["bin"].to_numpy(), frame["pairs"].to_numpy().astype(np.uint32), 0, {}
    for length, corpus in frame["corpus"].rle().struct.unnest().iter_rows():
        found[corpus] = bins[start : start + length], pairs[start : start + length]
        start += length
    return found


def _rows_of(taken_away: pl.DataFrame) -> dict[Any, np.ndarray]:
    """The rows that caps take away, rising, by batch."""
    parts = taken_away.partition_by("batch", as_dict=True)
    return {batch: np.sort(part["row"].to_numpy()) for (batch,), part in parts.items()}


def _between(rows: np.ndarray | None, low: int, high: int) -> np.ndarray:
    return np.empty(0, np.int64) if rows is None else rows[(rows >= low) & (rows < high)]


def _listed(
    lists: Mapping[str, Artifact], segments: Sequence[Mapping[str, Any]], taken_away: pl.DataFrame
) -> pl.DataFrame:
    rows_of, rows = _rows_of(taken_away), []
    for segment in segments:
        capped = _between(rows_of.get(segment["batch"]), segment["start"], segment["start"] + segment["taken"])
        artifact = lists[segment["batch"]]
        rows.append(
            {
                **segment,
                "list_key": artifact.manifest_key,
                "list_version": artifact.data_version,
                "kept": segment["taken"] - len(capped),
            }
        )
    return pl.DataFrame(pl.from_arrow(parquet.from_rows(rows, LISTS))).sort("batch", "start")


def _cuts(policy: Policy, segments: Sequence[Mapping[str, Any]], cuts: Mapping[str, tuple[int, Cut]]) -> pl.DataFrame:
    rows = []
    for budget, (k, cut) in cuts.items():
        fraction = policy.fraction_of(budget)
        last = dict(zip((f"last_{name}" for name in TIE_BREAK), cut.last[1:], strict=True)) if cut.last else {}
        rows.append(
            {
                "budget": budget,
                "fraction": None if fraction is None else format(fraction, "f"),
                "n": sum(segment["rows"] for segment in segments if segment["budget"] == budget),
                "k": k,
                "kept": cut.kept,
                "short": cut.kept < k,
                "cut": -cut.last[0] if cut.last else None,
                **last,
                "first_dropped": cut.first_dropped,
                "tied_at_cut": cut.tied,
            }
        )
    return pl.DataFrame(pl.from_arrow(parquet.from_rows(rows, CUTS)))


def _shards_used(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    table = parquet.from_rows([{name: row.get(name) for name in SHARDS_USED.names} for row in rows], SHARDS_USED)
    return pl.DataFrame(pl.from_arrow(table)).sort("shard")
