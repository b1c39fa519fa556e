"""How fast a selection is, and in how much memory: writes `result.json`, `result.md` and the tables of its docs page.

    python -m benchmarks.selection [--pairs 1e6,1e7,1e8,1e9] [--runs 3] [--folder FOLDER]

Makes ranked lists of so many pairs in a temporary folder (8 GB for 1e8; 1e9 is ten links to each of these), or in
FOLDER, where those of an earlier run are used again and stay. Two hours on two cores with all sizes, most of it
making lists.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from benchmarks.selection import generated
from benchmarks.selection.page import write
from compalign_dagster import artifacts
from compalign_dagster.store import LocalStore

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGES = ("compalign-dagster", "duckdb", "numpy", "polars", "pyarrow")
ALONE = 100_000_000  # pairs at which export, trace and what-if are measured, or the most there are
DATACOMP = 10_000_000
REFILTERED = (1000, 10_000)  # batches, pairs in each
_FILES = 10  # of scores, for each list


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--pairs", default="1e6,1e7,1e8,1e9", help="sizes, from the smallest")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=REFILTERED[0], help="of the refiltered crawl")
    parser.add_argument("--folder", type=Path, help="where lists lie or are to lie; default: a temporary one")
    chosen = parser.parse_args(arguments)
    sizes = [int(float(size)) for size in chosen.pairs.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        result = {
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "generated": {"batch_pairs": generated.BATCH_PAIRS, "distinct_batches": generated.DISTINCT},
            "runs": measured(folder, sizes, chosen.runs),
            "refilter": refiltered(Path(temporary), chosen.batches),
        }
    result["ratios"] = ratios(result)
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    write(result, HERE / "result.md", ROOT / "docs" / "selection-benchmark.md")


def measured(folder: Path, sizes: list[int], runs: int) -> list[dict[str, Any]]:
    """Every run of every measurement on lists, in order."""
    found = []
    alone = max((size for size in sizes if size <= ALONE), default=min(sizes))
    for size in sizes:
        generated.listed(folder, size)
        for run in range(runs):
            names = ["scan", "cut"] + (["export", "trace", "what_if"] if size == alone else [])
            entry: dict[str, Any] = {"pairs": size, "run": run, **{name: in_process(name, folder) for name in names}}
            if size == DATACOMP:
                entry |= {"uids": in_process("uids", folder), **rival(folder)}
            found.append(entry)
            print(json.dumps(entry), flush=True)
    return found


def in_process(name: str, folder: Path) -> dict[str, Any]:
    """One measurement of `measure.py`."""
    return _last_line("benchmarks.selection.measure", name, str(folder))


def rival(folder: Path) -> dict[str, Any]:
    """The threshold filter on the same rewards, and on rewards of half precision, of which many are equal."""
    fraction = "0.3"
    for name, kind in (("datacomp", np.float32), ("datacomp_half", np.float16)):
        _scores(folder, folder / name, kind)
    return {
        name: _last_line("benchmarks.selection.rivals", str(folder / name), str(folder / "rival.npy"), fraction)
        for name in ("datacomp", "datacomp_half")
    }


def _scores(folder: Path, out: Path, kind: type) -> None:
    """`uid` and `score` of every pair as tables of 100,000 rows, in no order that a filter could use."""
    if out.exists():
        return
    out.mkdir()
    store = LocalStore(folder / "store")
    for at, key in enumerate(json.loads((folder / "keys.json").read_text())):
        found = artifacts.load(store, key)
        assert found is not None, "a list that was just made"
        rows = pl.read_parquet(found.fetch("ranked.parquet"), columns=["pair_id", "reward"]).sort("pair_id")
        table = rows.select(uid="pair_id", score=pl.Series(rows["reward"].to_numpy().astype(kind).astype(np.float32)))
        for part, piece in enumerate(table.iter_slices(-(-table.height // _FILES))):
            piece.write_parquet(out / f"{at:04d}-{part}.parquet")


def refiltered(folder: Path, batches: int) -> dict[str, Any]:
    """One new batch on so many, through the whole selection."""
    pairs = REFILTERED[1]
    found = _last_line("benchmarks.selection.refilter", str(folder), str(batches), str(pairs))
    return {"batches": batches, "pairs": pairs, **found}


def _last_line(module: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", module, *arguments]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    return json.loads(out.splitlines()[-1])


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """The figures by name."""
    runs, found = result["runs"], {}
    for size in sorted({run["pairs"] for run in runs}):
        of = [run for run in runs if run["pairs"] == size]
        name = _power(size)
        found[f"cut_vs_scan_{name}"] = _figure([_cpu(run, "cut", "scan") for run in of], "CPU-seconds, over the scan's")
        if size == max(run["pairs"] for run in runs):
            found[f"peak_mib_{name}"] = _figure([run["cut"]["peak_mib"] for run in of], "MiB, the whole process")
        if "export" in of[0]:
            found[f"list_vs_scan_{name}"] = _figure(
                [_cpu(run, "export", "scan") for run in of], "CPU-seconds, over the scan's"
            )
            for key in ("trace", "what_if"):
                values = [run[key]["cpu_seconds"] for run in of]
                found[f"{key}_seconds_{name}"] = _figure(values, "CPU-seconds")
            values = [run["what_if"]["again"]["cpu_seconds"] for run in of]
            found[f"what_if_again_seconds_{name}"] = _figure(values, "CPU-seconds, another fraction")
        if "datacomp" in of[0]:
            values = [_cpu(run, "datacomp", "uids") for run in of]
            found[f"topk_vs_datacomp_{name}"] = _figure(values, "its CPU-seconds, over ours", better="higher")
            values = [_grown(run["uids"]) / _grown(run["datacomp"]) for run in of]
            found[f"topk_memory_vs_datacomp_{name}"] = _figure(values, "memory beyond the imports, over its")
    whole, one = result["refilter"]["whole"], result["refilter"]["one"]
    found["refilter_one_batch_share"] = _figure([one["cpu_seconds"] / whole["cpu_seconds"]], "of a full filtering")
    return found


def _cpu(run: dict[str, Any], name: str, over: str) -> float:
    return run[name]["cpu_seconds"] / run[over]["cpu_seconds"]


def _grown(entry: dict[str, Any]) -> float:
    return max(entry["peak_mib"] - entry["imports_mib"], 1.0)


def _figure(values: list[float], unit: str, better: str = "lower") -> dict[str, Any]:
    each = {"median": median(values), "min": min(values), "max": max(values)}
    return {**{name: round(value, 4) for name, value in each.items()}, "n": len(values), "unit": unit, "better": better}


def _power(size: int) -> str:
    return f"{size:.0e}".replace("e+0", "e")


if __name__ == "__main__":
    main()
