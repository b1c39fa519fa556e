"""Filtering a thousand batches whole, then again when one more has come: through the selection, from scores to version.

    python -m benchmarks.selection.refilter FOLDER BATCHES PAIRS

Each batch is one shard of PAIRS pairs, with a pair index and scores as the stages before write them, captions
apart. Prints one line of JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.selection.clock import Clock, peak_mib
from benchmarks.selection.generated import batch_name, frame
from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.scoring.tables import SCORES
from compalign_dagster.selection import deciding
from compalign_dagster.selection.policy import Policy
from compalign_dagster.store import LocalStore

_POLICY = Policy(keep_fraction="0.3")
_EMPTY = {"string": "", "int32": 0, "int64": 0, "float": 0.0}


def land(store: LocalStore, number: int, pairs: int) -> dict[str, Any]:
    """Index and scores of a batch; its ledger row."""
    rows = frame(number, pairs)
    keys = {}
    for name, schema in (("pairs", PAIRS), ("scores", SCORES)):
        columns = [
            rows[field.name].to_arrow().cast(field.type)
            if field.name in rows.columns
            else pa.array([_EMPTY[str(field.type)]] * pairs, field.type)
            for field in schema
        ]
        keys[name] = f"{name}/{number:05d}/{name}.parquet"
        path = parquet.write(pa.Table.from_arrays(columns, schema=schema), store.root / f"{name}.work")
        store.put_new(keys[name], path)
    return {
        "shard": rows["shard"][0],
        "batch": batch_name(number),
        "model_version": "m" * 64,
        "scores_key": keys["scores"],
        "pairs_key": keys["pairs"],
        "rejected_key": None,
        "index_version": f"index {number}",
        "data_version": f"scores {number}",
        "pairs": pairs,
        "scored": pairs,
        "rejected": 0,
        "quarantined": 0,
    }


def filtered(store: LocalStore, rows: list[dict[str, Any]], ledger: Artifact) -> dict[str, Any]:
    """Seconds of deciding on these batches and publishing the version, and how many lists were made and re-used."""
    clock = Clock()
    others = deciding.others_of(store, rows, _POLICY)
    key = deciding.key_with(others, rows, _POLICY, {})
    version = deciding.decide(store, rows, _POLICY, others)
    deciding.publish(version, ledger, key, config={})
    return {**clock.read(), **version.facts["lists"]}


def main(folder: Path, batches: int, pairs: int) -> None:
    """Both filterings, in one process; libraries are loaded by a small one before."""
    store = LocalStore(folder / "refilter")
    store.root.mkdir(parents=True)
    ledger = artifacts.publish(
        store, "score_ledger", "none", {"x": b""}, code_version=1, inputs=[], config={}, facts={}
    )
    rows = [land(store, number, pairs) for number in range(batches + 1)]
    filtered(LocalStore(folder / "refilter"), [land(store, batches + 1, pairs)], ledger)
    whole = filtered(store, rows[:batches], ledger)
    print(json.dumps({"whole": whole, "one": filtered(store, rows, ledger), "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
