"""The figures for people: `result.md`, and the tables of `docs/selection-benchmark.md`."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

MARKER = "<!-- below: written by python -m benchmarks.selection -->"
AIMS = {
    "cut_vs_scan": "at most 1.5",
    "list_vs_scan": "at most 8",
    "topk_vs_datacomp": "at least 1",
    "topk_memory_vs_datacomp": "at most 0.1",
    "peak_mib": "at most 2,048 at 1e9",
    "trace_seconds": "at most 1",
    "what_if_seconds": "at most 2",
    "refilter_one_batch_share": "at most 0.05",
}
_WHAT = {
    "scan": "DuckDB reads every reward once",
    "cut": "the whole decision on lists that are there",
    "export": "kept pairs and places as one Parquet file, no captions",
    "trace": "three pairs looked up in all batches",
    "what_if": "all counts of another fraction",
    "uids": "decision, and kept identifiers as a sorted array",
    "datacomp": "a numpy threshold filter on the same pairs",
    "datacomp_half": "the same on rewards of half precision",
}


def write(result: Mapping[str, Any], summary: Path, page: Path) -> None:
    """Write `summary` whole, and `page` below its marker."""
    tables = "\n".join([*_limits(result), "", *_ratios(result), "", *_measured(result), "", *_ties(result)])
    summary.write_text(f"# Selection\n\n{tables}\nMade by `python -m benchmarks.selection`.\n")
    prose, marker, _ = page.read_text().partition(MARKER)
    page.write_text(f"{prose}{marker}\n\n{tables}")


def _limits(result: Mapping[str, Any]) -> list[str]:
    machine, made = result["machine"], result["generated"]
    refilter = result["refilter"]
    return [
        f"Limits: one machine of {machine['cores']} cores; ratios and seconds are "
        "CPU-seconds of all threads of a process; seconds on the clock stand beside them. Files were in the page "
        "cache as far as memory allows. Generated pairs: rewards of a normal distribution, random identifiers, "
        f"lists of {made['batch_pairs']:,} pairs in two corpora, one budget of 0.3. From "
        f"{made['batch_pairs'] * made['distinct_batches']:,} pairs on, lists are hard links to those of the first "
        f"{made['distinct_batches']} batches under other names, for the scan as for the cut. Refiltering: "
        f"{refilter['batches']:,} batches of {refilter['pairs']:,} pairs, once.",
    ]


def _ratios(result: Mapping[str, Any]) -> list[str]:
    rows = ["| figure | median | range | runs | aim | unit |", "| --- | ---: | ---: | ---: | --- | --- |"]
    for name, found in result["ratios"].items():
        aim = next((aim for start, aim in AIMS.items() if name.startswith(start)), "-")
        span = f"{_number(found['min'])} to {_number(found['max'])}"
        rows.append(f"| `{name}` | {_number(found['median'])} | {span} | {found['n']} | {aim} | {found['unit']} |")
    return rows


def _measured(result: Mapping[str, Any]) -> list[str]:
    rows = [
        "| pairs | what | CPU-seconds | on the clock | peak MiB | of it before |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    sizes = sorted({run["pairs"] for run in result["runs"]})
    for size in sizes:
        runs = [run for run in result["runs"] if run["pairs"] == size]
        for name, what in _WHAT.items():
            entries = [run[name] for run in runs if name in run]
            if entries:
                figures = [median(entry[key] for entry in entries) for key in ("cpu_seconds", "seconds")]
                memory = [median(entry[key] for entry in entries) for key in ("peak_mib", "imports_mib")]
                cells = " | ".join([*map(_number, figures), *(f"{each:,.0f}" for each in memory)])
                rows.append(f"| {size:,} | {what} | {cells} |")
    whole, one = result["refilter"]["whole"], result["refilter"]["one"]
    for entry, what in ((whole, "filtering all batches"), (one, "filtering again with one more")):
        cells = f"{_number(entry['cpu_seconds'])} | {_number(entry['seconds'])}"
        lists = f"{entry['made']:,} lists made, {entry['reused']:,} used again"
        rows.append(f"| {entry['made'] + entry['reused']:,} batches | {what}: {lists} | {cells} | - | - |")
    return rows


def _ties(result: Mapping[str, Any]) -> list[str]:
    runs = [run for run in result["runs"] if "datacomp" in run]
    if not runs:
        return []
    ours, theirs, half = (runs[0][name]["kept"] for name in ("uids", "datacomp", "datacomp_half"))
    return [
        f"Of {runs[0]['pairs']:,} pairs 0.3 are {ours:,}. The threshold filter kept {theirs:,}, and {half:,} where "
        "rewards have half precision: everybody who is tied with the first pair behind the cut.",
        "",
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
