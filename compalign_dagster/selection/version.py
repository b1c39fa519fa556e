"""A version of the filtered dataset: a cut, and the ranked lists of which it takes the leading rows.

What belongs here: reading a version, batch by batch, and what it says of a pair. What does not: making one
(`deciding.py`), which version is `current`, pictures and pages.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.errors import CompalignError
from compalign_dagster.selection.cut import Rows
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.reasons import BELOW_CUT, NO_BUDGET, TIED_AT_CUT
from compalign_dagster.selection.tables import CAPPED, CUTS, LISTS, RANKED, SHARD_KEYS, SHARDS_USED
from compalign_dagster.store import Store, seekable

READING_ORDER = ["shard", "image_offset", "caption_index", "key"]
TABLES = {"lists": LISTS, "cuts": CUTS, "capped": CAPPED, "shards": SHARDS_USED}
"""The files of a version that are tables, `<name>.parquet`."""
_LEDGER = "score_ledger"
_KEYS = [name for name in SHARD_KEYS.names if name not in SHARDS_USED.names]


@dataclass(frozen=True)
class Version:
    """One decision about a crawl, published or not."""

    store: Store
    policy: Policy
    lists: pl.DataFrame  # LISTS
    cuts: pl.DataFrame  # CUTS
    capped: pl.DataFrame  # CAPPED
    shards: pl.DataFrame  # SHARDS_USED
    facts: Mapping[str, Any]
    inputs: Sequence[Input] = ()  # what it was decided on, apart from the ledger
    published: Artifact | None = None
    rows: Sequence[Mapping[str, Any]] = ()  # the ledger's, of a version that is not published yet
    _loaded: dict[str, Artifact] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, artifact: Artifact) -> "Version":
        """A published version, read from its files. `CompalignError` for one of an earlier layout."""
        if not {f"{name}.parquet" for name in TABLES} <= set(artifact.names()):
            raise CompalignError(
                f"dataset version {artifact.work_key[:12]}",
                expected=f"the tables {', '.join(TABLES)}",
                found="the layout of an earlier release",
                remedy="Read it with the release that wrote it, or materialise filtered_dataset again.",
            )
        tables: Any = {name: frame_of(artifact, f"{name}.parquet") for name in TABLES}
        tables["shards"] = tables["shards"].drop(_KEYS, strict=False)  # earlier releases wrote them there
        policy = Policy.model_validate(json.loads(artifact.store.read(artifact.file_key("policy.json"))))
        return cls(artifact.store, policy, **tables, facts=artifact.facts, inputs=artifact.inputs, published=artifact)

    @property
    def artifact(self) -> Artifact:
        """Where it was published; only of a published version."""
        assert self.published is not None, "this version is not published yet"
        return self.published

    @cached_property
    def shard_keys(self) -> pl.DataFrame:
        """`shards`, and where the index, scores and rejected pairs of each lie (SHARD_KEYS), by the version's ledger.

        Raises `CompalignError` when that ledger is gone, or is not the one that the version was made of.
        """
        if self.published is None:
            told = pl.DataFrame(pl.from_arrow(parquet.from_rows([dict(row) for row in self.rows], SHARD_KEYS)))
        else:
            told = frame_of(_ledger_of(self.published), "ledger.parquet", SHARD_KEYS.names)
        found = self.shards.join(told, on=SHARDS_USED.names, how="inner", maintain_order="left")
        if found.height != self.shards.height:
            missing = self.shards.join(told, on=SHARDS_USED.names, how="anti")
            raise CompalignError(
                "score ledger of a dataset version",
                expected=f"one row for each of its {self.shards.height:,} shards, with their index and scores",
                found=f"{found.height:,}" + (f"; none of {missing['shard'][0]}" if missing.height else ""),
                remedy="`compalign verify` names the file that was altered; restore it.",
            )
        return found

    def batches(self) -> list[str]:
        """The batches it decided on, sorted."""
        return sorted(self.lists["batch"].unique().to_list())

    def ranked_list(self, batch: str) -> Artifact:
        """The batch's ranked list. `CompalignError` when it is gone."""
        key = str(self.lists.filter(batch=batch)["list_key"][0])
        if key not in self._loaded:
            found = artifacts.load(self.store, key)
            if found is None:
                raise CompalignError(
                    f"ranked list {key} in {self.store.url}",
                    expected="a published list, for a version of the dataset takes rows of it",
                    found="none",
                    remedy="Restore it, or materialise filtered_dataset again.",
                )
            self._loaded[key] = found
        return self._loaded[key]

    def decided(self, batch: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Every pair of a batch with its decision, in the list's order.

        `row` (position in the list), the `columns` of RANKED (all by default) and `reason` (null when kept).
        """
        wanted = [name for name in (columns or RANKED.names) if name not in ("row", "reason")]
        needed = list(dict.fromkeys([*wanted, "corpus", "reward", "reason"]))
        artifact = self.ranked_list(batch)
        with seekable(self.store, artifact.file_key("ranked.parquet")) as stream:
            table = pq.read_table(stream, columns=needed, use_threads=False)
        frame = pl.DataFrame(pl.from_arrow(table)).with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
        return self.with_decision(batch, frame).select("row", *wanted, "reason")

    def kept(self, batch: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The kept pairs of a batch, in reading order (by place in the shard), with `columns` of RANKED."""
        wanted = [name for name in (columns or RANKED.names) if name != "reason"]
        found = []
        with closing(Rows(self.ranked_list(batch), list(dict.fromkeys([*wanted, *READING_ORDER])))) as rows:
            for segment in self.lists.filter(batch=batch).iter_rows(named=True):
                frame = rows.slice(segment["start"], segment["start"] + segment["taken"])
                found.append(frame.join(self._capped_rows(batch), on="row", how="anti"))
        return pl.concat(found).sort(READING_ORDER).select(wanted)

    def find(self, pair_ids: Sequence[str]) -> pl.DataFrame:
        """Every occurrence of these pairs: `batch`, `row`, RANKED's columns and `reason` (null when kept)."""
        wanted = sorted(set(pair_ids))
        found = [self._find(batch, wanted) for batch in self.batches()]
        schema = pl.DataFrame(pl.from_arrow(RANKED.empty_table())).schema
        empty = pl.DataFrame(schema={"batch": pl.String, "row": pl.Int64, **schema})
        return pl.concat([empty, *(frame.select(empty.columns) for frame in found if frame.height)])

    def _find(self, batch: str, pair_ids: list[str]) -> pl.DataFrame:
        artifact = self.ranked_list(batch)
        with seekable(self.store, artifact.file_key("ids.parquet")) as stream:
            places = _rows_of(pq.ParquetFile(stream), pair_ids)
        if not places:
            return pl.DataFrame()
        with closing(Rows(artifact, RANKED.names)) as rows:
            frame = rows.at(np.array(places, np.int64))
        return self.with_decision(batch, frame).with_columns(batch=pl.lit(batch))

    def with_decision(self, batch: str, frame: pl.DataFrame) -> pl.DataFrame:
        """`frame`'s `reason` becomes the decision's, from `row`, `corpus` and `reward`."""
        budgets = self.cuts.select("budget", "k", "cut")
        segments = self.lists.filter(batch=batch).join(budgets, on="budget", how="left")
        marked = frame.join(segments.select("corpus", "start", "taken", "k", "cut"), on="corpus", how="left").join(
            self._capped_rows(batch).rename({"reason": "cap"}), on="row", how="left"
        )
        return marked.with_columns(
            reason=pl.when(pl.col("reason").is_not_null())
            .then("reason")
            .when(pl.col("cap").is_not_null())
            .then("cap")
            .when(pl.col("row") < pl.col("start") + pl.col("taken"))
            .then(None)
            .when(pl.col("k") == 0)
            .then(pl.lit(NO_BUDGET))
            .when(pl.col("reward") == pl.col("cut"))
            .then(pl.lit(TIED_AT_CUT))
            .otherwise(pl.lit(BELOW_CUT))
        ).drop("start", "taken", "k", "cut", "cap")

    def _capped_rows(self, batch: str) -> pl.DataFrame:
        return self._caps.get(batch, self.capped.select("row", "reason").clear())

    @cached_property
    def _caps(self) -> dict[Any, pl.DataFrame]:
        """`row` and `reason` of what caps took away, by batch."""
        parts = self.capped.partition_by("batch", as_dict=True)
        return {batch: rows.select("row", "reason") for (batch,), rows in parts.items()}


def _ledger_of(version: Artifact) -> Artifact:
    """The ledger that a version was made of, as it was then."""
    source = next((item for item in version.inputs if item.kind == _LEDGER), None)
    found = artifacts.load(version.store, source.key) if source else None
    if found is None or source not in (found.as_input(), replace(found.as_input(), manifest_sha256=None)):
        raise CompalignError(
            f"score ledger of dataset version {version.work_key[:12]}",
            expected=source.key if source else "to be named among its inputs",
            found="none" if found is None else "another ledger under that name",
            remedy="Restore it, or materialise filtered_dataset again.",
        )
    found.verify()
    return found


def _rows_of(ids: pq.ParquetFile, pair_ids: list[str]) -> list[int]:
    """Positions of these pairs, from the row groups that may hold them."""
    found: list[int] = []
    for at in range(ids.num_row_groups):
        limits: Any = ids.metadata.row_group(at).column(0).statistics
        wanted = [pair for pair in pair_ids if limits is None or limits.min <= pair <= limits.max]
        if wanted:
            rows = pl.DataFrame(pl.from_arrow(ids.read_row_group(at)))
            found += rows.filter(pl.col("pair_id").is_in(wanted))["row"].to_list()
    return sorted(found)


def frame_of(artifact: Artifact, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """One of an artifact's tables, or some of its columns."""
    return pl.read_parquet(io.BytesIO(artifact.store.read(artifact.file_key(name))), columns=columns)
