"""A small real instance: batches of known size go through their Dagster runs, and rows and bytes are counted.

What belongs here: measuring. What does not: what a larger crawl would need (`tables.py`).
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale.tables import BY_BATCH

SMALL, LARGE = 300, 2_400  # pairs in a shard
MORE = 4  # shards of the last batch: with one small and one large shard before it, three batches fix three coefficients
KINDS = {  # what the store holds of a crawl, by the folder it lies in
    "pair index": ("raw_crawl_shards", "raw_crawl"),
    "scores": ("scored_shards_shards", "scored_shards"),
    "ledger": ("score_ledger",),
    "ranked lists": ("ranked_pairs",),
    "filtered dataset": ("filtered_dataset",),
}
_MODEL = {"pretrain_steps": 2, "train_steps": 2, "batch_images": 8}  # nobody looks at its rewards
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def measure(home: Path, *, small: int = SMALL, large: int = LARGE) -> list[dict[str, Any]]:
    """One row per batch: its shards and pairs, the rows its runs left in Dagster, the bytes it added to the store.

    Names the instance it makes below `home` in the environment, as `compalign demo` does.
    """
    from compalign_dagster.cli.instance import prepare
    from compalign_dagster.definitions import build_defs
    from compalign_dagster.samples.crawl import write_sample_crawl
    from compalign_dagster.settings import load

    sizes = {"judged_images": 40, "evaluation_pairs": 4}
    write_sample_crawl(home / "small", seed=3, pairs=(2 + MORE) * small, shard_pairs=small, **sizes)
    write_sample_crawl(home / "large", seed=4, pairs=large, shard_pairs=large, **sizes)
    for name in ("labels", "evaluation"):
        shutil.copytree(home / "small" / name, home / name)
    settings = load(home=home, device="cpu", **_MODEL)
    prepare(settings)
    defs = build_defs(settings=settings)
    few, many = (iter(sorted((home / name / "landing").rglob("*.tar"))) for name in ("small", "large"))
    rows: list[dict[str, Any]] = []
    for source, shards in ((few, 1), (few, 1), (many, 1), (few, MORE)):  # the model is made with the first
        _deliver(source, home / "landing" / "crawl", shards)
        before = _bytes(home / "store")
        found = _batch(defs, settings, learn=not rows)
        added = {kind: count - before[kind] for kind, count in _bytes(home / "store").items()}
        rows.append({"shards": shards, **found, "store_bytes": added})
    return rows[1:]


def _deliver(source: Iterator[Path], landing: Path, shards: int) -> None:
    landing.mkdir(parents=True, exist_ok=True)
    for _ in range(shards):
        path, place = next(source), landing / f"{len(list(landing.glob('*.tar'))):05d}.tar"
        shutil.copyfile(path, place.with_suffix(".part"))
        place.with_suffix(".part").replace(place)


def _batch(defs: Any, settings: Any, *, learn: bool) -> dict[str, Any]:
    """Land, index, score, fold and filter what has arrived, each by its job, and count."""
    from compalign_dagster import latest
    from compalign_dagster.crawl.batches import read_log
    from resources.storage import Storage

    store = Storage.from_settings(settings).store
    runs = {"land_batch": _run(defs, "land_batch", None)}
    batch = read_log(store)[-1].key
    if learn:
        _run(defs, "index_batch", batch)
        _learn(settings)
    runs["score_batch"] = _run(defs, "score_batch", batch)
    runs["refilter"] = _run(defs, "refilter", None)
    facts = latest.require(store, "scored_shards", batch).facts
    return {"batch": batch, "pairs": facts["pairs"], "runs": runs}


def _run(defs: Any, job: str, partition: str | None) -> dict[str, int]:
    """Rows and bytes that one run leaves in Dagster's event log."""
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=instance, partition_key=partition, run_config=_QUIET
        )
        entries = instance.all_logs(result.run_id)
        kinds = Counter(entry.dagster_event_type.value if entry.dagster_event_type else "LOG" for entry in entries)
        return {
            "event_rows": len(entries),
            "event_bytes": sum(len(dg.serialize_value(entry)) for entry in entries if entry.dagster_event_type),
            "log_bytes": sum(len(dg.serialize_value(entry)) for entry in entries if not entry.dagster_event_type),
            "log_lines": kinds["LOG"],
            "materialisations": kinds["ASSET_MATERIALIZATION"],
            "checks": kinds["ASSET_CHECK_EVALUATION"],
        }


def _learn(settings: Any) -> None:
    """Train a small model and promote it, past a gate that so little training cannot pass."""
    from assets import reward_model
    from assets.coco_hf_annotations import publish_annotations
    from compalign_dagster import decisions
    from resources.accelerator import Accelerator
    from resources.storage import Storage

    storage = Storage.from_settings(settings)
    publish_annotations(storage, settings)
    model, _ = reward_model.publish_reward_model(storage, Accelerator.from_settings(settings), settings)
    value = {"manifest": model.manifest_key, "model_version": model.facts["model_version"]}
    decisions.decide(storage.store, "promoted_model", value, after=0)


def _bytes(store: Path) -> dict[str, int]:
    """Bytes of each of KINDS."""
    return {
        kind: sum(path.stat().st_size for name in names for path in (store / name).rglob("*") if path.is_file())
        for kind, names in KINDS.items()
    }


def fit(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Bytes per batch, shard and pair of what a batch adds; of a version of the dataset, which has no pair in it.

    There are as many batches as coefficients: solved exactly. Below nothing is nothing.
    """
    sizes = np.array([[1, row["shards"], row["pairs"]] for row in rows], np.float64)
    found = {}
    for kind in BY_BATCH:
        values = np.array([row["store_bytes"][kind] for row in rows], np.float64)
        found[kind] = dict(zip(("batch", "shard", "pair"), _solved(sizes, values), strict=True))
    return {
        **found,
        "filtered dataset": {"version": float(max(row["store_bytes"]["filtered dataset"] for row in rows))},
    }


def fit_events(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Rows and bytes of the event log: per batch and per shard of the run that scores it, and per filtering.

    A shard adds log lines; the bytes of a batch's other events are those of its pictures and do not follow shards.
    """
    sizes = np.array([[1, row["shards"]] for row in rows], np.float64)
    found = {}
    for name in ("event_rows", "event_bytes", "log_bytes", "materialisations", "checks"):
        values = np.array([row["runs"]["score_batch"][name] for row in rows], np.float64)
        filterings = [row["runs"]["refilter"][name] for row in rows]
        fitted = dict(zip(("batch", "shard"), _solved(sizes, values), strict=True))
        found[name] = {**fitted, "filtering": float(max(filterings))}
    events, lines = found["event_bytes"], found.pop("log_bytes")
    largest = max(row["runs"]["score_batch"]["event_bytes"] for row in rows)
    found["event_bytes"] = {
        "batch": largest + lines["batch"],
        "shard": lines["shard"],
        "filtering": events["filtering"] + lines["filtering"],
    }
    return found


def _solved(sizes: np.ndarray, values: np.ndarray) -> list[float]:
    return [round(max(float(value), 0.0), 2) for value in np.linalg.lstsq(sizes, values, rcond=None)[0]]
