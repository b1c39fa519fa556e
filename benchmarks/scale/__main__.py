"""What CC3M, CC12M and LAION-400M would need: writes `result.json`, `result.md` and the tables of `docs/scale.md`.

    python -m benchmarks.scale [--texts FILE | --reuse] [--pairs-per-second 2.5] [--gpu-rates 100,300] [--gpu-price 2]

Runs a few batches of a rendered crawl through a Dagster instance of their own and counts what they leave
behind; selects among random rewards in processes of their own. About two minutes on two cores. `--texts` is a
Parquet file of real URLs and captions (the data pack's `web_alt_text`): the store's bytes per pair are then those
of tables with these texts. Rates come from the results of the
benchmarks `scoring`, `cascade` and `intake`.
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
SELECTED = (100_000, 400_000)  # pairs


def measure(texts: Path | None, selected: tuple[int, ...] = SELECTED) -> dict[str, Any]:
    """Every measured figure."""
    from assets import progress
    from compalign_dagster.settings import Settings

    fields = Settings.model_fields
    runs = [memory.measured(pairs) for pairs in selected]
    (few, least), (many, most) = ((run["pairs"], run["peak_mib"] * 2**20) for run in (runs[0], runs[-1]))
    each = (most - least) / (many - few)
    with tempfile.TemporaryDirectory() as folder:
        rows = instance.measure(Path(folder, "home"))
    return {
        "batch_size": [fields["batch_max_shards"].default, fields["batch_max_pairs"].default],
        "progress": {"line": progress.SECONDS_BETWEEN_LINES, "observation": progress.SECONDS_BETWEEN_OBSERVATIONS},
        "runs": rows,
        "store": instance.fit(rows),
        "events": instance.fit_events(rows),
        "memory": {"runs": runs, "bytes_per_pair": round(each, 1), "fixed_bytes": round(least - each * few)},
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
        "gpu": {"rates": [float(rate) for rate in chosen.gpu_rates.split(",")], "price": chosen.gpu_price},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "ratios": {
            "selection_bytes_per_pair": {
                **dict.fromkeys(("median", "min", "max"), result["memory"]["bytes_per_pair"]),
                "n": 1,
                "unit": "bytes of peak memory, over pairs",
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


def _result(name: str) -> dict[str, Any]:
    path = HERE.parent / name / "result.json"
    return json.loads(path.read_text()) if path.is_file() else {}


if __name__ == "__main__":
    main()
