"""From timed runs to ratios, rates and agreement. What does not belong here: running anything, words for people."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from compalign_dagster.scoring.tolerance import difference

KEPT = 0.1
LOWP = {"fp32": "fp32", "bf16": "lowp"}
SAME_NETWORK = (0.999, 0.001)  # rank correlation at least, share of changed decisions at most
OTHER_NETWORK = (0.999, 0.01)  # another implementation of it, which reads the images by itself
OTHER_PRECISION = (0.995, 0.01)  # random weights put the pairs closer together than trained ones

Run = dict[str, Any]


def figures(runs: list[Run]) -> dict[str, Any]:
    """`ratios`, `rates`, `agreement` and `stages` of what was run; what was not is not there."""
    return {"ratios": ratios(runs), "rates": rates(runs), "agreement": agreement(runs), "stages": stages(runs)}


def ratios(runs: list[Run]) -> dict[str, Any]:
    """Every ratio whose two sides were measured, run by run."""
    per_cpu, wall = "pairs per CPU-second, over {}", "wall time, {} over ours"
    found: dict[str, Any] = {}

    def add(name: str, ours: Sequence[float], theirs: Sequence[float], unit: str, better: str = "higher") -> None:
        if ours and theirs:
            found[name] = ratio([own / other for own, other in zip(ours, theirs, strict=True)], unit, better)

    for precision, short in LOWP.items():
        tail = "" if short == "fp32" else f"_{short}"
        one, five = (_rates(runs, "engine", f"{precision} {name}") for name in ("one", "five"))
        theirs, bound = per_cpu.format("Data-Juicer's"), per_cpu.format("the bare forward pass's")
        add(f"of_forward_bound{tail}", one, _rates(runs, "bare", f"{precision} one"), bound)
        add(f"vs_data_juicer_{short}_1cap", one, _rates(runs, "data_juicer", "one"), theirs)
        add(f"vs_data_juicer_5cap_{short}", five, _rates(runs, "data_juicer", "five"), theirs)
        add(f"vs_transformers_loop{tail}", one, _rates(runs, "loop", f"{precision} one"), per_cpu.format("the loop's"))
    add(
        "same_decision_vs_data_juicer",
        _values(runs, "data_juicer, all cores", None, "seconds"),
        _values(runs, "engine, all cores", None, "seconds"),
        wall.format("Data-Juicer's"),
    )
    add(
        "ray_over_local",
        _values(runs, "ray", None, "steady_seconds"),
        _values(runs, "here", None, "steady_seconds"),
        "wall time of Ray, over this process's",
        "lower",
    )
    direct, dagster = (_values(runs, side, None, "seconds") for side in ("direct", "dagster"))
    if dagster:
        shares = [run / alone - 1 for run, alone in zip(dagster, direct, strict=True)]
        found["orchestration_overhead"] = ratio(shares, "wall time of a run beyond the engine's, over it", "lower")
        shards = _values(runs, "dagster", None, "shards")
        each = [1000 * (run - alone) / count for run, alone, count in zip(dagster, direct, shards, strict=True)]
        found["orchestration_ms_per_shard"] = ratio(each, "ms a shard of a run beyond the engine's", "lower")
    least, most = (_memory(runs, pick) for pick in (min, max))
    add("peak_64_vs_1_shards", most, least, "peak memory of many shards, over one's", "lower")
    if most:
        found["peak_mib"] = ratio(most, "MiB", "lower")
    return found


def rates(runs: list[Run]) -> list[dict[str, Any]]:
    """Median pairs per CPU-second of every side."""
    sides = dict.fromkeys((run["side"], run["work"]) for run in runs if "itm" in run)
    return [
        {
            "what": f"{side}, {_captions(work)}",
            "pairs_per_second": round(median(_rates(runs, side, work)), 2),
            "source": "python -m benchmarks.scoring, per CPU-second",
        }
        for side, work in sides
        if "all cores" not in side
    ]


def agreement(runs: list[Run]) -> list[dict[str, Any]]:
    """How far each side's scores lie from another's of the same pairs, and whether that is tolerated."""
    compared = [
        (("engine", "fp32 one"), ("bare", "fp32 one"), SAME_NETWORK),
        (("engine", "fp32 one"), ("loop", "fp32 one"), OTHER_NETWORK),
        (("engine", "fp32 one"), ("data_juicer", "one"), OTHER_NETWORK),
        (("engine", "fp32 five"), ("data_juicer", "five"), OTHER_NETWORK),
        (("engine", "bf16 one"), ("data_juicer", "one"), OTHER_PRECISION),
        (("engine, all cores", None), ("data_juicer, all cores", "five"), OTHER_PRECISION),
    ]
    found = []
    for ours, theirs, (least, most) in compared:
        one, other = (next(iter(_values(runs, *side, "itm")), None) for side in (ours, theirs))
        if one is None or other is None:
            continue
        own, reference = np.array(one), np.array(other)
        said = difference(reference, own, KEPT)
        found.append(
            {
                "what": f"{ours[0]}, {_captions(ours[1] or 'five')} | {theirs[0]}".replace(" | ", " against "),
                "n": len(own),
                "correlation": round(float(said.correlation), 6),
                "changed": f"{round(said.changed * len(own))} ({said.changed:.2%})",
                "largest": round(float(np.abs(own - reference).max()), 5),
                "bound": f"{least} and {most:.1%}",
                "tolerated": bool(said.correlation >= least and said.changed <= most),
            }
        )
    return found


def stages(runs: list[Run]) -> dict[str, dict[str, float]]:
    """Median share of wall time by stage, of each of the engine's works."""
    works = dict.fromkeys((run["side"], run["work"]) for run in runs if "stages" in run)
    return {
        f"{side}, {_captions(work)}": {
            stage: median(shares[stage] for shares in _values(runs, side, work, "stages"))
            for stage in ("read", "decode", "forward", "write")
        }
        for side, work in works
    }


def without_scores(runs: list[Run]) -> list[Run]:
    """The runs as they are published: thousands of scores say nothing there."""
    return [{key: value for key, value in run.items() if key != "itm"} for run in runs]


def ratio(values: list[float], unit: str, better: str) -> dict[str, Any]:
    """Median and range over the runs."""
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3),
            "n": len(values), "unit": unit, "better": better}  # fmt: skip


def _values(runs: list[Run], side: str, work: str | None, key: str) -> list[Any]:
    return [run[key] for run in sorted(runs, key=lambda run: run["run"])
            if run["side"] == side and (work is None or run["work"] == work) and key in run]  # fmt: skip


def _rates(runs: list[Run], side: str, work: str) -> list[float]:
    counted = (_values(runs, side, work, key) for key in ("pairs", "cpu_seconds"))
    return [pairs / seconds for pairs, seconds in zip(*counted, strict=True)]


def _memory(runs: list[Run], pick: Any) -> list[float]:
    counts = {int(run["work"]) for run in runs if run["side"] == "memory"}
    return _values(runs, "memory", str(pick(counts)), "peak_mib") if counts else []


def _captions(work: str) -> str:
    return work.replace("one", "1 caption").replace("five", "5 captions")
