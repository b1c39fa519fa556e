"""What hangs on a URL, a host, an image, a labeler, a batch or a model: versions, pairs, models.

What belongs here: counting and naming what is touched, without changing anything. What does not: taking it away
(`takedown.py`).
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from compalign_dagster import artifacts
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl import batches
from compalign_dagster.errors import InputError
from compalign_dagster.lineage import models, places
from compalign_dagster.lineage.places import OCCURRENCE, Delivery
from compalign_dagster.selection.blocks import Entry
from compalign_dagster.selection.version import Version, frame_of
from compalign_dagster.selection.versions import Published
from compalign_dagster.store import Store

_MOST_IN_SQL = 100  # entries
FIRST = 10
"""Pair ids that are shown of each count."""


def of_entries(store: Store, entries: Sequence[Entry]) -> dict[str, Any]:
    """What entries of a block list would touch: see `of_pairs`. The SQL is left out of a long list."""
    found = of_pairs(store, places.reached(store, entries, places.deliveries(store)))
    if len(entries) <= _MOST_IN_SQL:
        found["sql"] = " union ".join(sql_of(entry) for entry in entries)
    return found


def of_pairs(store: Store, found: pl.DataFrame) -> dict[str, Any]:
    """Versions and models that hold or learned from these occurrences (as `places.reached` gives them).

    JSON values: counts of `pairs, occurrences, images`, the `batches`, the first ids, and of each version how many
    it kept and dropped.
    """
    ids = found["pair_id"].unique().sort().to_list()
    return {**_counted(store, found), "versions": [_held(*one, found, ids) for one in places.readable(store)]}


def _counted(store: Store, found: pl.DataFrame) -> dict[str, Any]:
    images, indexes = (found[name].unique().to_list() for name in ("image_sha256", "pairs_key"))
    trained = [(model, models.trained_on(model, images, indexes)) for model in models.models(store)]
    ids = found["pair_id"].unique().sort()
    return {
        "pairs": ids.len(),
        "occurrences": found.height,
        "images": len(images),
        "batches": found["batch"].unique().sort().to_list(),
        "first_ids": ids.head(FIRST).to_list(),
        "models": [{**_model(model), "because": because} for model, because in trained if because],
    }


def of_batch(store: Store, key: str) -> dict[str, Any]:
    """What a batch of the log brought, and what became of it."""
    batches.require(store, key)
    mine = places.deliveries(store, batch=key)
    found = [
        places.index_of(store, item, [*OCCURRENCE, "pair_id", "image_sha256"]).with_columns(
            pairs_key=pl.lit(item.pairs_key), batch=pl.lit(key)
        )
        for item in mine
    ]
    if not found:
        raise InputError(f"batch {key}", expected="an indexed batch", found="no index", remedy="Materialise raw_crawl.")
    rows = pl.concat(found)
    opened = places.readable(store)
    return {
        **_counted(store, rows),
        "versions": [_of_lists(item, version.lists.filter(batch=key)) for item, version in opened],
        "sql": f"select distinct pair_id from pairs where {_in_batch(store, key, mine)}",  # noqa: S608 - quoted
    }


def _in_batch(store: Store, key: str, mine: Sequence[Delivery]) -> str:
    """The condition on `pairs` that gives a batch's: an index that a later batch brought again counts as of that."""
    newest = {item.pairs_key: item.batch for item in places.deliveries(store)}
    again = sorted(item.pairs_key for item in mine if newest[item.pairs_key] != key)
    wanted = f"batch = {quoted(key)}"
    return f"{wanted} or store_key in ({', '.join(map(quoted, again))})" if again else wanted


def of_model(store: Store, version: str) -> dict[str, Any]:
    """What the model whose version begins so has decided: every version cut by its rewards or capped by its clusters.

    Raises:
        InputError: unless exactly one model is meant.
    """
    known = {model.facts["model_version"]: model for model in models.models(store)}
    meant = [name for name in known if name.startswith(version)]
    if len(meant) != 1:
        raise InputError(
            f"reward model {version!r}",
            expected="the beginning of one of " + ", ".join(sorted(name[:12] for name in known)),
            found=f"{len(meant)} of them",
            remedy="Give more digits, or one of these.",
        )
    return _decided_by(store, [known[meant[0]]])


def of_labeler(store: Store, labeler: str) -> dict[str, Any]:
    """What a labeler's judgements went into: annotations, the models trained on them, the versions those cut.

    Raises:
        InputError: when nobody of this name judged anything.
    """
    judged, trained = [], []
    for model in models.models(store):
        for item in models.annotations_of(model):
            mine = frame_of(item, "ranks.parquet").filter(labeler=labeler)
            if mine.height:
                judged.append({"annotations": item.manifest_key, "images": mine["image_id"].n_unique()})
                trained.append(model)
    if not trained:
        raise InputError(
            f"labeler {labeler!r}", expected="somebody whose judgements a model saw", found="nobody",
            remedy="Look at the annotations' page for the names of labelers.",
        )  # fmt: skip
    unique = [entry for at, entry in enumerate(judged) if entry not in judged[:at]]
    return {"judged": unique, **_decided_by(store, trained)}


def _decided_by(store: Store, by: Sequence[Artifact]) -> dict[str, Any]:
    wanted = sorted({model.facts["model_version"] for model in by})
    opened = places.readable(store)
    cut = [
        (item, version)
        for item, version in opened
        if version.shards["model_version"].is_in(wanted).any() or _clustered_by(item.artifact) in wanted
    ]
    listed = ", ".join(map(quoted, wanted))
    return {
        "pairs": max((item.artifact.facts["pairs"] for item, _ in cut), default=0),
        "first_ids": _first_kept(cut[-1][1]) if cut else [],
        "versions": [_of_lists(item, version.lists) for item, version in cut],
        "models": [_model(model) for model in {model.manifest_key: model for model in by}.values()],
        "sql": f"select distinct pair_id from scores where model_version in ({listed})",  # noqa: S608 - quoted
    }


def _clustered_by(version: Artifact) -> str | None:
    """The version of the model that made the semantic clusters by which a version is capped."""
    found = (artifacts.load(version.store, item.key) for item in version.inputs if item.kind == "semantic_clusters")
    return next((clusters.facts["model_version"] for clusters in found if clusters), None)


def _first_kept(version: Version) -> list[str]:
    """A few pairs that a version keeps, the best of its first batch."""
    frame = version.decided(version.batches()[0], ["pair_id", "reward"])
    return frame.filter(pl.col("reason").is_null())["pair_id"].head(FIRST).to_list()


def _held(item: Published, version: Version, found: pl.DataFrame, ids: list[str]) -> dict[str, Any]:
    """How many of these occurrences a version kept and dropped, of the deliveries that it was made from."""
    mine = found.join(version.shard_keys.select("shard", "pairs_key"), on=["shard", "pairs_key"], how="semi")
    rows = version.find(ids).join(mine.select(OCCURRENCE), on=OCCURRENCE, how="semi")
    kept = rows.filter(pl.col("reason").is_null())
    return {
        **_named(item),
        "kept": kept.height,
        "dropped": rows.height - kept.height,
        "first_kept": kept["pair_id"].unique().sort().head(FIRST).to_list(),
    }


def _of_lists(item: Published, lists: pl.DataFrame) -> dict[str, Any]:
    kept = int(lists["kept"].sum())
    return {**_named(item), "kept": kept, "dropped": int(lists["rows"].sum()) - kept}


def _named(item: Published) -> dict[str, Any]:
    return {
        "version": item.name,
        "manifest": item.artifact.manifest_key,
        "created": item.artifact.manifest["created"],
        "was_current": bool(item.current),
    }


def _model(model: Artifact) -> dict[str, Any]:
    return {"model_version": model.facts["model_version"], "manifest": model.manifest_key}


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def sql_of(entry: Entry) -> str:
    """SELECT of the pair ids that an entry names, for the database of `compalign audit-db`."""
    value = quoted(entry.value)
    where = {
        "pair_id": f"pair_id = {value}",
        "image_sha256": f"image_sha256 = {value}",
        "url": f"sha256(url) = {value}",
        "url_host": f"(host = {value} or ends_with(host, {quoted('.' + entry.value)}))",
        "image_near": f"bit_count(xor(('0x' || image_phash)::ubigint, ('0x' || {value})::ubigint)) <= {entry.distance}",
    }[entry.kind]
    return f"select distinct pair_id from pairs where {where}"  # noqa: S608 - values are checked and quoted
