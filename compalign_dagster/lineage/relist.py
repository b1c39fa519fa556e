"""Ranked lists made again from scores, index, rules and block list, and compared with those of a version.

What belongs here: one batch. What does not: the cut over all of them (`redo.py`).
"""

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.lineage import comparing
from compalign_dagster.lineage.chain import Checked, manifest_of
from compalign_dagster.lineage.manifests import Fault
from compalign_dagster.selection import blocks, caps, ranked, reasons
from compalign_dagster.selection.select import OCCURRENCE
from compalign_dagster.selection.version import frame_of
from compalign_dagster.versions import canonical_json

_LEDGER, _LIST, _SIGNALS = "score_ledger", "ranked_pairs", "caption_signals"
_TABLES = ("ranked", "histogram", "groups", "ids")
_EMPTIED = {
    "shard": pl.String,
    "key": pl.String,
    "caption_index": pl.Int32,
    "reason": pl.String,
    "domain": pl.String,
}

Row = dict[str, Any]


@dataclass
class Redone:
    """What making the decisions again found."""

    faults: list[Fault] = field(default_factory=list)
    batches: int = 0  # whose list was made again
    of_batches: int = 0
    rows: int = 0  # of those lists
    wrong: set[str] = field(default_factory=set)  # of the batches made again, those with a fault
    passed_over: int = 0  # batches that were drawn, but whose files are known to be faulty


@dataclass(frozen=True)
class Made:
    """A version's artifact, and what it was made of, from its own inputs."""

    artifact: Artifact
    chain: Checked
    ledger: Artifact
    lists: dict[str, Artifact]  # by batch
    others: dict[str, Artifact]

    @classmethod
    def of(cls, artifact: Artifact, chain: Checked) -> "Made":
        found: dict[str, dict[str, Artifact]] = defaultdict(dict)
        for source in artifact.inputs:
            made = manifest_of(source, chain)
            if made is not None:
                found[made.kind][made.partition or ""] = made
        others = {f"{_SIGNALS}/{batch}": made for batch, made in found[_SIGNALS].items()}
        others |= {kind: found[kind][""] for kind in (blocks.KIND, *caps.KINDS) if "" in found[kind]}
        (ledger,) = found[_LEDGER].values()
        return cls(artifact, chain, ledger, dict(sorted(found[_LIST].items())), others)

    def rows(self) -> list[Row]:
        """The ledger's rows of the version's model."""
        rows = parquet.read(io.BytesIO(self.artifact.store.read(self.ledger.file_key("ledger.parquet")))).to_pylist()
        return [row for row in rows if row["model_version"] == self.artifact.facts["model_version"]]


def redo_list(made: Made, batch: str, rows: Sequence[Row], rules: ranked.Rules, found: Redone) -> None:
    """Make one batch's list again and compare all of it."""
    stored = made.lists.get(batch)
    if stored is None or not rows:
        detail = f"the ledger has {len(rows)} shards of {batch}, and the version {'no' if stored is None else 'a'} list"
        found.faults.append(Fault(made.artifact.manifest_key, "inputs", detail))
        return
    files = [*(stored.file_key(name) for name in stored.names()), *(row["scores_key"] for row in rows)]
    files += [row["pairs_key"] for row in rows]
    if not all(made.chain.sound(key) for key in files):
        found.passed_over += 1
        return
    listed = blocks.entries(made.others.get(blocks.KIND))
    indexes = [io.BytesIO(made.artifact.store.read(row["pairs_key"])) for row in rows]
    blocked = blocks.matches(indexes, listed)
    languages = made.others.get(f"{_SIGNALS}/{batch}") if rules.languages else None
    emptied = _emptied(made, rows, frame_of(stored, "ranked.parquet"))
    by_list = emptied.filter(pl.col("reason").is_in(reasons.OF_BLOCK_LIST)).drop("domain")
    blocked = pl.concat([blocked.join(by_list, on=OCCURRENCE, how="anti"), by_list]).sort(OCCURRENCE)
    key = ranked.key_of(rows, rules, blocked, languages)
    if key != stored.work_key and stored.manifest["code_version"] == ranked.CODE_VERSION:
        detail = f"is {stored.work_key}, but its shards, rules and blocked pairs give {key}"
        found.faults.append(Fault(stored.manifest_key, "work_key", detail))
    by_rule = emptied.filter(pl.col("reason").is_not_null()).drop("domain")
    blocked = pl.concat([blocked.join(by_rule, on=OCCURRENCE, how="anti"), by_rule])
    again = ranked.read_and_build(made.artifact.store, rows, rules, blocked, languages)
    for name in _TABLES:
        if emptied.height and name == "groups":  # holds counts of domains that the index cannot tell any more
            continue
        expected = getattr(again, name)
        if emptied.height and name == "ranked":
            told = expected.select(OCCURRENCE).join(emptied, on=OCCURRENCE, how="left", maintain_order="left")
            expected = expected.with_columns(domain=pl.coalesce(expected["domain"], told["domain"]))
        found.faults += comparing.differences(
            stored.file_key(f"{name}.parquet"), expected, frame_of(stored, f"{name}.parquet")
        )
    stated = {"batch": batch, **json.loads(canonical_json(again.facts))}
    found.faults += comparing.other_values(stored.manifest_key, "facts", stated, stored.facts)
    config = rules.model_dump(mode="json")
    found.faults += comparing.other_values(stored.manifest_key, "config", config, stored.manifest["config"])
    found.batches += 1
    found.rows += again.ranked.height


def _emptied(made: Made, rows: Sequence[Row], listed: pl.DataFrame) -> pl.DataFrame:
    """Occurrences whose texts a recorded takedown has emptied, with the `reason` and `domain` that the list has.

    Neither can be made again without them.
    """
    redacted = set(made.chain.redacted)
    blank = pl.col("caption").fill_null("").str.strip_chars() == ""
    frames = [
        pl.read_parquet(io.BytesIO(made.artifact.store.read(row["pairs_key"])), columns=[*OCCURRENCE, "caption"])
        for row in rows
        if row["pairs_key"] in redacted
    ]
    if not frames:
        return pl.DataFrame(schema=_EMPTIED)
    told = listed.select(*_EMPTIED)
    return told.join(pl.concat(frames).filter(blank), on=OCCURRENCE, how="semi")
