"""Everything the store knows of one pair: its bytes, its scores, and what every version of the dataset decided.

What belongs here: finding a pair and putting together what manifests, tables and decisions say of it, as JSON values.
What does not: whether they are true (`verify.py`), and printing.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from compalign_dagster import artifacts, decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.batches import live_shards, read_log
from compalign_dagster.errors import InputError
from compalign_dagster.lineage import models, places
from compalign_dagster.lineage.manifests import key_of
from compalign_dagster.lineage.places import OCCURRENCE, Delivery
from compalign_dagster.lineage.redaction import redactions
from compalign_dagster.scoring.tables import FIGURES
from compalign_dagster.selection import blocks, in_force
from compalign_dagster.selection.blocks import entry
from compalign_dagster.selection.reasons import MEANING
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.versions import Published
from compalign_dagster.store import Store

NOT_RECORDED = "not recorded"
MOST = 100
"""Occurrences that one trace tells of."""

RunOf = Callable[[Artifact], str | None]


@dataclass(frozen=True)
class Sought:
    """What is looked for: one of them; `shard` and `key` go together."""

    pair_id: str | None = None
    url: str | None = None
    shard: str | None = None
    key: str | None = None
    image_sha256: str | None = None

    def __str__(self) -> str:
        """For messages."""
        return ", ".join(f"{name} {value}" for name, value in vars(self).items() if value)


def trace(store: Store, sought: Sought, *, run_of: RunOf = lambda _: None) -> dict[str, Any]:
    """What is known of a pair: JSON values, `pairs` with one entry for each occurrence.

    `run_of` names the run that materialised an artifact, where somebody knows: the store does not.

    Raises:
        InputError: when nothing that was ever indexed is what is looked for.
    """
    opened = places.readable(store)
    found = _find(store, sought, [version for _, version in opened])
    if not found:
        raise InputError(
            f"{sought} in {store.url}",
            expected="a pair of an indexed shard",
            found="none",
            remedy="Check how it is written; a URL is looked for as found, an image by the SHA-256 of its bytes.",
        )
    ids = sorted({row["pair_id"] for _, row in found})
    decided = [(item, version, version.find(ids)) for item, version in opened]
    told = [_told(store, delivery, row, decided, run_of) for delivery, row in found[:MOST]]
    used = sorted({entry["model_version"] for one in told for entry in one["versions"] if entry["model_version"]})
    return {
        "sought": {name: value for name, value in vars(sought).items() if value},
        "store": store.url,
        "found": len(found),
        "pairs": told,
        "models": [models.of_version(store, version) for version in used],
    }


def _find(store: Store, sought: Sought, known: Sequence[Version]) -> list[tuple[Delivery, dict[str, Any]]]:
    """Deliveries and rows of PAIRS. By pair, versions are asked: they hold an index of ids; what is in none is read."""
    among = places.deliveries(store)
    if sought.shard:
        wanted = pl.col("key") == sought.key
        return _rows(store, [item for item in among if item.shard == sought.shard], wanted)
    if sought.pair_id:
        shards = {shard for version in known for shard in version.find([sought.pair_id])["shard"]}
        asked = {used for version in known for used in version.shards.select("shard", "index_version").iter_rows()}
        maybe = [item for item in among if item.shard in shards or (item.shard, item.index_version) not in asked]
        return _rows(store, maybe, pl.col("pair_id") == sought.pair_id)
    kind, value = ("url", sought.url) if sought.url else ("image_sha256", sought.image_sha256)
    hits = places.reached(store, [entry(kind, value or "", request="trace")], among)
    by_key = hits.partition_by("pairs_key", as_dict=True)
    return [
        pair
        for item in among
        if (item.pairs_key,) in by_key
        for pair in _rows(store, [item], pl.struct("key", "caption_index").is_in(_places(by_key[(item.pairs_key,)])))
    ]


def _places(hits: pl.DataFrame) -> pl.Series:
    return hits.select(pl.struct("key", "caption_index")).to_series().implode()


def _rows(store: Store, among: Sequence[Delivery], wanted: pl.Expr) -> list[tuple[Delivery, dict[str, Any]]]:
    return [(item, row) for item in among for row in places.index_of(store, item).filter(wanted).to_dicts()]


def _told(
    store: Store,
    delivery: Delivery,
    row: dict[str, Any],
    decided: Sequence[tuple[Published, Version, pl.DataFrame]],
    run_of: RunOf,
) -> dict[str, Any]:
    index = artifacts.load(store, delivery.index)
    changed = redactions(store)
    landed = next((item for item in index.inputs if item.kind == "landed_shard"), None) if index else None
    touched = [changed[key] for key in (delivery.pairs_key, landed.key if landed else "") if key in changed]
    live = live_shards(read_log(store)).get(delivery.shard)
    image = {name: row[f"image_{name}"] for name in ("offset", "length", "sha256", "phash", "format")}
    return {
        **{name: row[name] for name in ("pair_id", *OCCURRENCE, "caption", "url", "corpus")},
        "image": {**image, "width": row["width"], "height": row["height"]},
        "landed": {
            "shard": landed.key if landed else NOT_RECORDED,
            "sha256": delivery.sha256,
            "bytes": delivery.bytes,
            "batch": delivery.batch,
            "live": bool(live and live[0] == delivery.batch),
        },
        "index": made(index, run_of),
        "blocked": _blocked(store, row),
        "redacted": sorted({request for item in touched for request in item.requests}),
        "judgements": models.judgements(store, row["image_sha256"]),
        "versions": [
            entry
            for item, version, frame in decided
            for entry in _decisions(item, version, frame, delivery, row, run_of)
        ],
    }


def _decisions(
    item: Published, version: Version, frame: pl.DataFrame, delivery: Delivery, row: dict[str, Any], run_of: RunOf
) -> list[dict[str, Any]]:
    """What one version decided about one occurrence: nothing, where it was made from another delivery."""
    mine = frame.filter(*(pl.col(name) == row[name] for name in ("pair_id", *OCCURRENCE)))
    if not mine.height:
        return []
    used = version.shard_keys.filter(shard=row["shard"], pairs_key=delivery.pairs_key)
    if not used.height:
        return []
    shard, decision = used.to_dicts()[0], mine.to_dicts()[0]
    budget = version.policy.budget_of(decision["corpus"])
    scored = _made_of(version.store, shard["scores_key"])
    ledger = _input(item.artifact, "score_ledger")
    return [
        {
            "version": item.name,
            "manifest": item.artifact.manifest_key,
            "created": item.artifact.manifest["created"],
            "current": [_who(fact) for fact in item.current],
            "decision": "kept" if decision["reason"] is None else "dropped",
            "reason": decision["reason"],
            "meaning": MEANING.get(decision["reason"]) if decision["reason"] else None,
            "row": decision["row"],
            "cut": version.cuts.filter(budget=budget).to_dicts()[0],
            "policy": version.policy.model_dump(mode="json"),
            "policy_adopted": [
                _adopted(fact) for fact in in_force.history(version.store) if fact.policy == version.policy
            ],
            "scores": _scores(version.store, shard["scores_key"], row),
            "model_version": shard["model_version"],
            "made_by": [
                made(step, run_of)
                for step in (scored, ledger, version.ranked_list(decision["batch"]), item.artifact)
                if step is not None
            ],
        }
    ]


def _who(fact: decisions.Decision) -> dict[str, Any]:
    """When a version became `current`, and by whom where a person moved it."""
    value = fact.value
    return {
        "decision": f"decisions/{fact.name}/{fact.version:08d}.json",
        "decided": fact.decided,
        "action": value.get("action", "a run moved it, under the policy in force"),
        "by": value.get("by"),
        "policy": value.get("policy"),
    }


def _adopted(fact: in_force.PolicyInForce) -> dict[str, Any]:
    """When the policy that a version follows was put in force, and by whom."""
    by, why = fact.by or "the settings, or a run that adopted it", fact.why or NOT_RECORDED
    return {"policy": fact.version, "decided": fact.decided, "by": by, "why": why}


def made(artifact: Artifact | None, run_of: RunOf) -> dict[str, Any] | None:
    """How an artifact came about, as its manifest has it."""
    if artifact is None:
        return None
    return {
        "kind": artifact.kind,
        "manifest": artifact.manifest_key,
        "partition": artifact.partition,
        "code_version": artifact.manifest["code_version"],
        "data_version": artifact.data_version,
        "created": artifact.manifest["created"],
        "run": run_of(artifact) or NOT_RECORDED,
    }


def _scores(store: Store, key: str, row: dict[str, Any]) -> dict[str, float] | None:
    """Every figure that the model gave the pair; None where it gave none."""
    frame = pl.read_parquet(io.BytesIO(store.read(key)))
    mine = frame.filter(*(pl.col(name) == row[name] for name in OCCURRENCE))
    found = mine.select([name for name in FIGURES if name in mine.columns]).to_dicts()
    return {name: value for name, value in found[0].items() if value is not None} if found else None


def _made_of(store: Store, file_key: str) -> Artifact | None:
    """The artifact that a file belongs to."""
    return artifacts.load(store, key_of(file_key))


def _input(artifact: Artifact, kind: str) -> Artifact | None:
    key = next((item.key for item in artifact.inputs if item.kind == kind), None)
    return artifacts.load(artifact.store, key) if key else None


def _blocked(store: Store, row: dict[str, Any]) -> dict[str, str] | None:
    """The request of the block list in force that names the pair."""
    index = pl.DataFrame([{name: row[name] for name in blocks.COLUMNS}], schema_overrides={"caption_index": pl.Int32})
    hits = blocks.named([index.cast({"url": pl.String})], blocks.entries(blocks.in_force(store)))
    return hits.select("reason", "request").to_dicts()[0] if hits.height else None
