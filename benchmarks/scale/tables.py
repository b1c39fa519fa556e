"""From measured coefficients to crawls of other sizes: arithmetic, shown as arithmetic.

What belongs here: the sizes, the sums and the tables of `docs/scale.md`. What does not: measuring.
"""

from collections.abc import Mapping, Sequence
from typing import Any

BY_BATCH = ("pair index", "scores", "ranked lists")  # what a batch adds to the store
SHARD_PAIRS = 10_000  # what `compalign land --shard-rows` defaults to
CRAWLS = {  # pairs on the published lists
    "CC3M": 3_318_333,
    "CC12M": 12_423_374,
    "the paper's mix": 130_000_000,
    "LAION-400M": 413_871_335,
}
GPU_RATES = (100.0, 300.0, 1000.0)  # pairs per second
_HOUR, _DAY, _YEAR = 3600, 24, 24 * 365
_GB = 1e9


def work(pairs: int, batch_shards: int, batch_pairs: int) -> dict[str, int]:
    """Shards and batches of a crawl that lands whole, in full shards."""
    shards = -(-pairs // SHARD_PAIRS)
    per_batch = max(1, min(batch_shards, batch_pairs // SHARD_PAIRS))
    return {"pairs": pairs, "shards": shards, "batches": -(-shards // per_batch)}


def needs(size: Mapping[str, int], result: Mapping[str, Any]) -> dict[str, float]:
    """What Dagster and the store hold of a crawl once all of it is scored and filtered once."""
    events, store = result["events"], result["store"]
    per_pair = {kind: store[kind]["pair"] for kind in BY_BATCH} | (result["web"] or {})
    found = {
        name: size["batches"] * each["batch"] + size["shards"] * each["shard"] + each["filtering"]
        for name, each in events.items()
    }
    for kind in BY_BATCH:
        each = store[kind]
        found[kind] = size["batches"] * each["batch"] + size["shards"] * each["shard"] + size["pairs"] * per_pair[kind]
    found["filtered dataset"] = store["filtered dataset"]["version"]
    found["selection memory"] = result["list"]["peak_mib"] * 2**20 + (size["batches"] - 1) * result["batch_memory"]
    return found


def progress_rows(pairs: int, rate: float, every: Mapping[str, float]) -> float:
    """Rows that runs add while they score `rate` pairs per second, one line and one observation every so often."""
    return pairs / rate * sum(1 / seconds for seconds in every.values())


def page(result: Mapping[str, Any]) -> str:
    """Everything of `docs/scale.md` below its marker."""
    sizes = {name: work(pairs, *result["batch_size"]) for name, pairs in CRAWLS.items()}
    wanted = {name: needs(size, result) for name, size in sizes.items()}
    gpus = result["gpu"]
    rate = gpus["rates"][len(gpus["rates"]) // 2]
    lines = [
        "## Measured",
        "",
        *_measured(result),
        "",
        "## Shards, batches, Dagster (arithmetic on the measured figures)",
        "",
        f"Shards of {SHARD_PAIRS:,} pairs, batches of at most {result['batch_size'][0]:,} shards and "
        f"{result['batch_size'][1]:,} pairs. One filtering at the end. While a long step scores, it adds a log line "
        f"every {result['progress']['line']:.0f} s and an observation every {result['progress']['observation']:.0f} s; "
        f"these rows are counted at {rate:,.0f} pairs/s a run.",
        "",
        *_table(
            ("crawl", "pairs", "shards", "batches", "materialisations", "checks", "event rows", "event log",
             "progress rows"),
            [
                (name, *(_count(size[key]) for key in ("pairs", "shards", "batches")),
                 *(_count(wanted[name][key]) for key in ("materialisations", "checks", "event_rows")),
                 _bytes(wanted[name]["event_bytes"]), _count(progress_rows(size["pairs"], rate, result["progress"])))
                for name, size in sizes.items()
            ],
        ),
        "",
        "## Store and memory (arithmetic on the measured figures)",
        "",
        "Images are not in the store: they stay where they landed. Every further version adds what a version takes, "
        "every other set of rules its ranked lists, every further model scores and lists. Memory is that of the one "
        "process that selects, with full batches.",
        "",
        *_table(
            ("crawl", *BY_BATCH, "a version", "together", "memory to select"),
            [
                (name, *(_bytes(each[kind]) for kind in (*BY_BATCH, "filtered dataset")),
                 _bytes(sum(each[kind] for kind in (*BY_BATCH, "filtered dataset"))),
                 _bytes(each["selection memory"]))
                for name, each in wanted.items()
            ],
        ),
        "",
        "## Scoring time",
        "",
        *_times(result, sizes),
        "",
        "GPUs: **arithmetic, not a measurement**. Put your own rate and price in: hours = pairs / rate / 3,600, "
        f"cost = hours x {gpus['price']:.2f} a GPU-hour here. Any number of GPUs shares the hours; the cost stays.",
        "",
        *_table(
            ("crawl", *(f"{rate:,.0f} pairs/s: GPU-hours (cost)" for rate in gpus["rates"])),
            [
                (name, *(_gpu(size["pairs"], rate, gpus["price"]) for rate in gpus["rates"]))
                for name, size in sizes.items()
            ],
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _measured(result: Mapping[str, Any]) -> list[str]:
    store, events, listed = result["store"], result["events"], result["list"]
    rows = [
        *((kind, *(_bytes(store[kind][key]) for key in ("batch", "shard", "pair"))) for kind in BY_BATCH),
        ("version of the dataset, with its pages", _bytes(store["filtered dataset"]["version"]), "-", "-"),
        ("event log, a batch that is scored", _events(events, "batch"), _events(events, "shard"), "-"),
        ("event log, a filtering", _events(events, "filtering"), "-", "-"),
        ("memory to select: one full batch", _bytes(listed["peak_mib"] * 2**20), "-", "-"),
        ("memory to select: each further batch", _bytes(result["batch_memory"]), "-", "-"),
    ]  # fmt: skip
    lines = _table(("what", "fixed, or per batch", "per shard", "per pair"), rows)
    lines += ["", f"Making and cutting the ranked list of {listed['pairs']:,} pairs took {listed['seconds']:.1f} s."]
    if result["web"]:
        each = ", ".join(f"{kind} {value:,.0f}" for kind, value in result["web"].items() if kind != "pairs")
        lines += ["", f"Bytes per pair of tables with {result['web']['pairs']:,} real alt texts and URLs: {each}. "
                  "The sums below use these."]  # fmt: skip
    return lines


def _times(result: Mapping[str, Any], sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    if not result["cpu"]:
        return ["CPU: no measured rate; give one with `--pairs-per-second`."]
    lines = ["CPU: arithmetic on rates that were measured on one core."]
    rates = result["cpu"]
    lines += ["", *_table(
        ("crawl", *(f"{item['what']}, {item['pairs_per_second']:,.1f} pairs/s" for item in rates)),
        [
            (name, *(_duration(size["pairs"] / item["pairs_per_second"]) for item in rates))
            for name, size in sizes.items()
        ],
    )]  # fmt: skip
    return [*lines, "", *(f"- {item['what']}: {item['source']}" for item in rates)]


def _events(events: Mapping[str, Mapping[str, float]], key: str) -> str:
    return f"{_count(events['event_rows'][key])} rows, {_bytes(events['event_bytes'][key])}"


def _gpu(pairs: int, rate: float, price: float) -> str:
    hours = pairs / rate / _HOUR
    return f"{hours:,.1f} ({hours * price:,.0f})" if hours < 100 else f"{hours:,.0f} ({hours * price:,.0f})"


def _duration(seconds: float) -> str:
    hours = seconds / _HOUR
    if hours < 2 * _DAY:
        return f"{hours:,.1f} hours"
    return f"{hours / _DAY:,.0f} days" if hours < 2 * _YEAR else f"{hours / _YEAR:,.1f} years"


def _count(value: float) -> str:
    return f"{round(value):,}"


def _bytes(value: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", _GB), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:,.1f} {unit}"
    return f"{value:,.0f} B"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]
