"""Does a cascade pay: writes `result.json` and `result.md`.

    python -m benchmarks.cascade [--home var/sample --home var/photos] [--rounds 100] [--runs 5]

Homes are those of finished runs: their scores are read, samples are drawn from them, planned on, and the plan is
held against the decision of scoring everything. The time of each network is measured on one thread with random
weights. About three minutes.
"""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cascade import decisions, times

HERE = Path(__file__).parent
PACKAGES = ("compalign-dagster", "torch", "transformers", "numpy", "scipy")
BOUND = 0.01
PASSES = (0.15, 0.3, 0.5, 0.8)  # shares for the arithmetic on time


def main(arguments: list[str] | None = None) -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cascade", description=__doc__)
    parser.add_argument("--home", type=Path, action="append", default=[], help="a home with scores")
    parser.add_argument("--rounds", type=int, default=100, help="samples drawn for each row")
    parser.add_argument("--runs", type=int, default=5, help="timings of each network")
    chosen = parser.parse_args(arguments)
    parts = times.measure(chosen.runs)
    cost = times.costs(parts)
    runs = [row for home in chosen.home for row in decisions.measure(home, rounds=chosen.rounds, bound=BOUND)]
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "times": parts,
        "runs": runs,
        "ratios": {f"time_{name}_{share}": _ratio(value) for name, share, value in ratios(cost)},
        "rates": [
            {
                "what": "BLIP-large, fp32, one thread",
                "pairs_per_second": 1 / full(cost),
                "source": "`python -m benchmarks.cascade`, CPU time of a forward pass, one caption an image, random "
                "weights; reading and decoding are not in it",
            }
        ],
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "result.md").write_text(page(result))


def full(cost: dict[str, float]) -> float:
    """Seconds of BLIP-large for an image and its one caption, without the joint text pass."""
    return cost["blip-large image"] + cost["blip-large caption with image"]


def ratios(cost: dict[str, float]) -> list[tuple[str, float, float]]:
    """Time with a cascade over time without, by cheap scorer and share of passes that remain; arithmetic."""
    found = []
    for name in ("cosine of the same network", "clip-b32", "offline"):
        for share in PASSES:
            if name.startswith("cosine"):
                fused = cost["blip-large caption with image"]
                seconds = cost["blip-large image"] + cost["blip-large caption alone"] + share * fused
            elif f"{name} image" in cost:
                seconds = cost[f"{name} image"] + cost[f"{name} caption alone"] + share * full(cost)
            else:
                continue
            found.append((name, share, seconds / full(cost)))
    return found


def _ratio(value: float) -> dict[str, Any]:
    value = round(value, 4)
    unit = "CPU time with the cascade, over without; one caption an image"
    return {"median": value, "min": value, "max": value, "n": 1, "unit": unit, "better": "lower"}


def page(result: dict[str, Any]) -> str:
    """`result.md`."""
    cost = times.costs(result["times"])
    lines = [
        "The saved share belongs to the pair of scores it was measured on: plan on a sample of your own. Here both",
        "come from one small network. On `photos` cosine and reward are nearly one score: its rows show the least that",
        "is left.",
        "Times are CPU time of forward passes with random weights, one thread, fp32, on a machine with other work.",
        "The table of ratios is arithmetic on them.",
        "",
        "## Decisions",
        "",
        f"At most {BOUND:.0%} of decisions may differ, with 95 % confidence. *passes left* and *wrong*: medians over",
        f"samples, in the whole crawl. An audit scores {decisions.AUDITED:,} rejected pairs and must show the bound.",
        "",
        "| home | cheap score | rank correlation | kept | sample | plans used | passes left | wrong | most wrong "
        "| samples over the bound | audits passed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["runs"]:
        said = decisions.summary(row)
        lines.append(
            f"| {row['home']} | {row['cheap']} | {row['spearman']:.2f} | {row['fraction']:.0%} | {row['sample']:,} "
            f"| {said['used']:.0%} | {said['passes']:.1%} | {said['wrong']:.2%} | {said['most_wrong']:.2%} "
            f"| {said['over']:.0%} | {said['audits_passed']:.0%} |"
        )
    lines += ["", "## Time", "", "| network | part | milliseconds, median |", "| --- | --- | ---: |"]
    for item in result["times"]:
        shown = item["reason"] if item["part"] is None else f"{item['median'] * 1e3:,.1f}"
        lines.append(f"| {item['network']} | {item['part'] or '-'} | {shown} |")
    share = cost["blip-large caption with image"] / full(cost)
    lines += [
        "",
        f"At one caption an image, BLIP-large's text pass is {share:.1%} of the whole: all that the cosine of the same "
        "network could save.",
        "",
        "| cheap scorer | " + " | ".join(f"{share:.0%} of passes left" for share in PASSES) + " |",
        "| --- |" + " ---: |" * len(PASSES),
    ]
    table: dict[str, list[str]] = {}
    for name, _, value in ratios(cost):
        table.setdefault(name, []).append(f"{value:.2f}")
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in table.items()]
    return "\n".join([*lines, "", "Each is the time with the cascade over the time without; below 1 it pays."]) + "\n"


if __name__ == "__main__":
    main()
