"""Decisions made again from what they were made on, and compared with what a version says, field by field.

What belongs here: the ledger, the ranked lists, the cut, the counts. What does not: whether the files are the ones
that were published (`chain.py`), and whether rewards are what the model gives (`recompute.py`).

Nothing of a version is believed: whatever an altered file makes this code raise is a fault of that file.
"""

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.batches import live_shards, read_log
from compalign_dagster.lineage import comparing
from compalign_dagster.lineage.chain import Checked, manifest_of
from compalign_dagster.lineage.manifests import Fault, blaming, key_of
from compalign_dagster.lineage.relist import Made, Redone, Row, redo_list
from compalign_dagster.lineage.sampling import drawn
from compalign_dagster.scoring.ledger import coverage, fold
from compalign_dagster.scoring.tables import LEDGER
from compalign_dagster.selection import deciding
from compalign_dagster.selection.cut import Rows
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.version import TABLES, Version, frame_of
from compalign_dagster.selection.whatif import what_if
from compalign_dagster.versions import canonical_json, digest_json, work_key

_KEY = ["reward", *TIE_BREAK]
_LEDGER_TOLD = 2  # code version of the first ledgers that tell as much of themselves


def check(artifact: Artifact, chain: Checked, *, share: float = 1.0, seed: str = "") -> Redone:
    """Everything that a version decided, made again from its inputs; the lists of a drawn `share` of its batches.

    `chain` is what the walk from the same artifact found: files with a known fault are not read again.
    """
    found = Redone()
    if "lists.parquet" not in artifact.names():
        detail = f"{artifact.manifest['code_version']}: a release that made versions without lists decided it"
        found.faults.append(Fault(artifact.manifest_key, "code_version", detail))
        return found
    with blaming(found.faults, artifact.manifest_key):
        made = Made.of(artifact, chain)
        found.of_batches = len(made.lists)
        if not chain.sound(made.ledger.file_key("ledger.parquet")):
            return found
        with blaming(found.faults, made.ledger.file_key("ledger.parquet")):
            found.faults += _of_ledger(made)
        rows = made.rows()
        by_batch: dict[str, list[Row]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: row["shard"]):
            by_batch[row["batch"]].append(row)
        names = sorted({*by_batch, *made.lists})
        chosen = [names[at] for at in drawn(f"{artifact.data_version}{seed}", "batches", len(names), share)]
        policy = Version.open(artifact).policy
        for batch in chosen:
            where = made.lists[batch].manifest_key if batch in made.lists else artifact.manifest_key
            known = len(found.faults)
            with blaming(found.faults, where):
                redo_list(made, batch, by_batch[batch], policy.rules(), found)
            if len(found.faults) > known:
                found.wrong.add(batch)
        with blaming(found.faults, artifact.manifest_key):
            found.faults += _of_version(made, rows)
    return found


def _of_ledger(made: Made) -> Iterator[Fault]:
    """The ledger folded again, from the scores of every batch and the batch log as it was then."""
    where = made.ledger.file_key("ledger.parquet")
    scored: list[Row] = []
    for source in made.ledger.inputs:
        batch = manifest_of(source, made.chain)
        if batch is None or not made.chain.sound(batch.file_key("shards.parquet")):
            return
        scored += parquet.read(io.BytesIO(_read(batch, "shards.parquet"))).to_pylist()
    log = read_log(made.artifact.store)[: made.ledger.facts["batches"]]
    live = {shard: batch for shard, (batch, _) in live_shards(log).items()}
    models = [entry["model_version"] for entry in made.ledger.facts["coverage"]]
    folded = [fold(live, [row for row in scored if row["model_version"] == model]) for model in models]
    table = pa.concat_tables([LEDGER.empty_table(), *folded])
    if made.ledger.manifest["code_version"] >= _LEDGER_TOLD:
        yield from _of_ledgers_facts(made.ledger, table, live, [batch.key for batch in log])
    expected = pl.DataFrame(pl.from_arrow(table))
    yield from comparing.differences(where, expected, frame_of(made.ledger, "ledger.parquet"))
    for at, row in enumerate(expected.iter_rows(named=True)):
        for key, version in (("scores_key", "data_version"), ("pairs_key", "index_version")):
            shard = made.chain.artifacts.get(key_of(row[key]))
            if shard is not None and shard.data_version != row[version]:
                yield Fault(where, version, f"row {at} ({row['shard']}): is not the one of {row[key]}")


def _of_ledgers_facts(ledger: Artifact, table: pa.Table, live: dict[str, str], log: list[str]) -> Iterator[Fault]:
    """What a ledger says of itself, and the name of its work, which has the batches that it was made of."""
    models = [entry["model_version"] for entry in ledger.facts["coverage"]]
    rows = [table.filter(pc.equal(table["model_version"], model)) for model in models]
    expected = {
        "rows": table.num_rows,
        "live_shards": len(live),
        "batches": len(log),
        "coverage": [
            {"model_version": model, "coverage": coverage(part, live)} for model, part in zip(models, rows, strict=True)
        ],
        "scored": sum(row["scored"] for row in rows[0].to_pylist()) if rows else 0,
        "shards_by_batch": {batch: sum(at == batch for at in live.values()) for batch in log},
    }
    yield from comparing.other_values(ledger.manifest_key, "facts", expected, ledger.facts)
    inputs = [models, digest_json(table.to_pylist()), sorted(live.items()), len(log)]
    key = work_key(ledger.kind, code_version=ledger.manifest["code_version"], inputs=inputs, config={})
    if key != ledger.work_key:
        yield Fault(ledger.manifest_key, "work_key", f"is {ledger.work_key}, but its scores and batches give {key}")


def _of_version(made: Made, rows: Sequence[Row]) -> Iterator[Fault]:
    """The version's tables, facts and work key, made again from its lists."""
    artifact = made.artifact
    files = [part.file_key(name) for part in (artifact, *made.lists.values()) for name in part.names()]
    if not all(made.chain.sound(key) for key in files):
        return
    version = Version.open(artifact)
    policy = version.policy.model_dump(mode="json")
    for where, field_name, there in (
        (artifact.file_key("policy.json"), "", json.loads(_read(artifact, "policy.json"))),
        (artifact.manifest_key, "config.policy", artifact.manifest["config"].get("policy")),
        (artifact.manifest_key, "facts.policy", artifact.facts.get("policy")),
    ):
        if there != policy:
            yield Fault(where, field_name, "is not the policy that the version was made by")
    again = deciding.decide_on(artifact.store, rows, version.policy, made.lists, made.others)
    for name in TABLES:
        yield from comparing.differences(
            artifact.file_key(f"{name}.parquet"), getattr(again, name), getattr(version, name)
        )
    yield from comparing.other_values(
        artifact.manifest_key, "facts", json.loads(canonical_json(again.facts)), artifact.facts
    )
    yield from _of_facts(made, version)
    config = {name: value for name, value in artifact.manifest["config"].items() if name != "policy"}
    key = deciding.key_with(made.others, rows, version.policy, config)
    if key != artifact.work_key and artifact.manifest["code_version"] == deciding.CODE_VERSION:
        detail = f"is {artifact.work_key}, but its scores, policy and block list give {key}"
        yield Fault(artifact.manifest_key, "work_key", detail)
    yield from _of_cuts(version, made)


def _of_facts(made: Made, version: Version) -> Iterator[Fault]:
    """Facts that no cut gives; means only where the version has them."""
    facts, where = made.artifact.facts, made.artifact.manifest_key
    covers = {entry["model_version"]: entry["coverage"] for entry in made.ledger.facts["coverage"]}
    if facts.get("coverage") != covers.get(facts["model_version"]):
        yield Fault(where, "facts.coverage", f"is {facts.get('coverage')}, the ledger says otherwise")
    outcome = what_if(version, version.policy)
    for name, value in (("mean_reward_kept", outcome.mean_reward), ("expected_fit", outcome.expected_fit)):
        if name in facts and not comparing.equal(facts[name], value):
            yield Fault(where, f"facts.{name}", f"is {facts[name]}, and not {value}")
    lists = facts.get("lists", {})
    if lists.get("made", 0) + lists.get("reused", 0) != len(made.lists):
        yield Fault(where, "facts.lists", f"is {lists}, but there are {len(made.lists)} lists")


def _of_cuts(version: Version, made: Made) -> Iterator[Fault]:
    """The cut against the rewards themselves: the rows on both sides of it in every list, and how many are kept."""
    cuts = {row["budget"]: row for row in version.cuts.iter_rows(named=True)}
    kept: dict[str, int] = defaultdict(int)
    for segment in version.lists.iter_rows(named=True):
        cut, end = cuts[segment["budget"]], segment["start"] + segment["taken"]
        kept[segment["budget"]] += segment["kept"]
        capped = set(version.capped.filter(batch=segment["batch"])["row"].to_list())
        where = made.lists[segment["batch"]].file_key("ranked.parquet")
        if cut["cut"] is None:
            continue
        last = (-cut["cut"], *(cut[f"last_{name}"] for name in TIE_BREAK))
        with closing(Rows(made.lists[segment["batch"]], [*_KEY, "reason"])) as rows:
            low, high = max(end - 1, segment["start"]), min(end + 1, segment["start"] + segment["eligible"])
            for row in rows.slice(low, high).iter_rows(named=True):
                inside = (-row["reward"], *(row[name] for name in TIE_BREAK)) <= last
                if row["row"] not in capped and (inside != (row["row"] < end) or row["reason"] is not None):
                    side = "kept" if row["row"] < end else "dropped"
                    yield Fault(where, "reward", f"row {row['row']} is {side}, but the cut says otherwise")
    for budget, cut in cuts.items():
        if kept[budget] != cut["kept"] or cut["kept"] != (cut["kept"] if cut["short"] else cut["k"]):
            where = made.artifact.file_key("cuts.parquet")
            yield Fault(where, "kept", f"budget {budget} keeps {kept[budget]}, and not {cut['kept']} of {cut['k']}")


def _read(artifact: Artifact, name: str) -> bytes:
    return artifact.store.read(artifact.file_key(name))
