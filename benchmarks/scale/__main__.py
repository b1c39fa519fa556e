"""What CC3M, CC12M and LAION-400M would need: writes `result.json`, `result.md` and the tables of `docs/scale.md`.

    python -m benchmarks.scale [--texts FILE | --reuse] [--pairs-per-second 2.5] [--gpu-rates 100,300] [--gpu-price 2]

Runs a few batches of a rendered crawl through a Dagster instance of their own and counts what they leave
behind; makes the ranked list of a full batch in a process of its own. About three minutes on two cores. `--texts` is a
Parquet file of real URLs and captions (the data pack's `web_alt_text`): the store's bytes per pair are then those
of tables with these texts. Rates come from the results of the
benchmarks `scoring`, `cascade` and `intake`, memory for each further batch from that of `selection`.
"""

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.scale import instance, memory
from benchmarks.scale.tables import GPU_RATES, page

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "scale.md"
MARKER = "<!-- below: written by python -m benchmarks.scale -->"
PACKAGES = ("compalign-dagster", "dagster", "polars", "pyarrow")


def measure(texts: Path | None) -> dict[str, Any]:
    """Every measured figure."""
    from assets import progress
    from compalign_dagster.settings import Settings

    fields = Settings.model_fields
    with tempfile.TemporaryDirectory() as folder:
        rows = instance.measure(Path(folder, "home"))
    return {
        "batch_size": [fields["batch_max_shards"].default, fields["batch_max_pairs"].default],
        "progress": {"line": progress.SECONDS_BETWEEN_LINES, "observation": progress.SECONDS_BETWEEN_OBSERVATIONS},
        "runs": rows,
        "store": instance.fit(rows),
        "events": instance.fit_events(rows),
        "list": memory.measured(fields["batch_max_pairs"].default),
        "web": memory.web_bytes(texts) if texts else None,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--texts", type=Path, help="Parquet file with columns URL and TEXT")
    parser.add_argument("--pairs-per-second", type=float, help="a CPU rate of your own")
    parser.add_argument("--gpu-rates", default=",".join(map(str, GPU_RATES)), help="pairs/s per GPU")
    parser.add_argument("--gpu-price", type=float, default=2.0, help="of an hour of one GPU, in your currency")
    parser.add_argument("--reuse", action="store_true", help="keep what was measured; only rates and prices are new")
    chosen = parser.parse_args(arguments)
    result = _result("scale") if chosen.reuse else measure(chosen.texts)
    result |= {
        "cpu": rates(chosen.pairs_per_second),
        "batch_memory": batch_memory(),
        "gpu": {"rates": [float(rate) for rate in chosen.gpu_rates.split(",")], "price": chosen.gpu_price},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "ratios": {
            "list_peak_mib": {
                **dict.fromkeys(("median", "min", "max"), result["list"]["peak_mib"]),
                "n": 1,
                "unit": "MiB, the process that makes and cuts the ranked list of a full batch",
                "better": "lower",
            }
        },
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    tables = page(result)
    (HERE / "result.md").write_text(
        "Measured on rendered scenes and a small machine. Everything about larger crawls is arithmetic.\n\n" + tables
    )
    prose, marker, _ = PAGE.read_text().partition(MARKER)
    PAGE.write_text(f"{prose}{marker}\n\n{tables}")


def rates(given: float | None) -> list[dict[str, Any]]:
    """CPU rates with where they come from: the reader's own, and those that other benchmarks have measured."""
    found = [] if given is None else [{"what": "given", "pairs_per_second": given, "source": "`--pairs-per-second`"}]
    for item in _result("scoring").get("rates", []):
        if item["what"].startswith("engine"):  # the others are what it is compared with
            found.append({**item, "what": f"{item['what']}, the scoring benchmark's small network"})
    found += _result("cascade").get("rates", [])
    intake = _result("intake")
    if intake:
        images = intake["shards"]["shards"] * intake["shards"]["samples_per_shard"]
        rate = images / median(run["index"]["cpu_seconds"] for run in intake["runs"])
        source = "`python -m benchmarks.intake`, CPU time of `compalign index` on JPEGs of 640x480"
        found.append({"what": "indexing", "pairs_per_second": rate, "source": source})
    return found


def batch_memory() -> float:
    """Bytes that each further batch adds to the memory of a decision: between the two largest of `selection`."""
    runs = _result("selection")["runs"]
    few, many = sorted({run["pairs"] for run in runs})[-2:]
    low, high = (median(run["cut"]["peak_mib"] for run in runs if run["pairs"] == size) for size in (few, many))
    return round(max(high - low, 0) * 2**20 / ((many - few) / _result("selection")["generated"]["batch_pairs"]))


def _result(name: str) -> dict[str, Any]:
    path = HERE.parent / name / "result.json"
    return json.loads(path.read_text()) if path.is_file() else {}


if __name__ == "__main__":
    main()
