"""The figures for people: tables of `result.md`, and those with plots on `docs/scoring-benchmark.md`."""

from pathlib import Path
from typing import Any

AIMS = {  # name -> least or most that is aimed at
    "of_forward_bound": 0.90,
    "vs_data_juicer_fp32_1cap": 1.5,
    "vs_data_juicer_lowp_1cap": 3.3,
    "vs_data_juicer_5cap_fp32": 4.4,
    "vs_data_juicer_5cap_lowp": 8.0,
    "vs_transformers_loop": 1.15,
    "same_decision_vs_data_juicer": 10.0,
    "ray_over_local": 1.10,
    "orchestration_overhead": 0.05,
    "peak_64_vs_1_shards": 1.10,
}
PLOTS = {"ratios": "scoring-ratios.svg", "stages": "scoring-stages.svg"}


def tables(result: dict[str, Any]) -> str:
    """What both pages hold."""
    facts, machine, versions = result["inputs"], result["machine"], result["versions"]
    ratios = [
        f"| `{name}` | {row['median']:,} | {row['min']:,} to {row['max']:,} | {row['n']} | {row['unit']} | "
        f"{aim(name)} | {reached(name, row)} |"
        for name, row in result["ratios"].items()
    ]
    rates = [f"| {row['what']} | {row['pairs_per_second']:,.1f} |" for row in result["rates"]]
    agree = [
        f"| {row['what']} | {row['n']} | {row['correlation']:.5f} | {row['changed']} | {row['largest']:.4f} | "
        f"{row['bound']} |"
        for row in result["agreement"]
    ]
    stages = [
        f"| {name} | "
        + " | ".join(f"{shares.get(stage, 0):.1%}" for stage in ("read", "decode", "forward", "write"))
        + " |"
        for name, shares in result["stages"].items()
    ]
    left_out = [f"- Left out: {row['what']}, {row['reason']}." for row in result["left_out"]]
    libraries = ", ".join(f"{name} {found}" for name, found in versions.items())
    command = "python -m benchmarks.scoring" + (" --datapack DIR" if "data pack" in facts["images"] else "")
    return f"""{machine["processor"]}, {machine["cores"]} cores, {machine["memory_gib"]} GiB, {machine["accelerator"]},
{machine["system"]}; load when it began: {machine["load"]}. {libraries}.

## Ratios

| figure | median | range | n | of | aim | reached |
| --- | ---: | ---: | ---: | --- | ---: | --- |
{chr(10).join(ratios)}

## Rates

| side | pairs per CPU-second |
| --- | ---: |
{chr(10).join(rates)}

## Agreement of scores

Every program's probabilities of a match, on the same pairs, against those of the reference beside it.

| compared | pairs | rank correlation | decisions changed at the best tenth | largest difference | bound |
| --- | ---: | ---: | ---: | ---: | --- |
{chr(10).join(agree)}

## What the engine waited for

| run | read | decode | forward | write |
| --- | ---: | ---: | ---: | ---: |
{chr(10).join(stages)}

## What was measured

- Input: {facts["pairs"]["one"]} images with one caption and {facts["pairs"]["five"] // 5} with five;
  {facts["images"]}, {facts["mean_image_bytes"]:,} bytes on average. A BLIP for image-text matching of
  {facts["parameters"] / 1e6:.1f} million parameters with random weights, the same file for everybody.
- Programs live side by side and take turns within each run; start-up and the loading of weights are apart. One torch
  thread each, all threads' CPU time counted, except in `same_decision_vs_data_juicer`, which is wall time with every
  core for both. Files were in the page cache.
- Ours runs with its default settings and computes reward, cosine, ITM and the reward's deviation for every pair; the
  others compute the ITM probability alone. Data-Juicer runs with its own defaults, a row of its dataset for each pair.
  The plain loop and the bare forward pass take the batch size that was fastest for them (of 8, 16, 32).
- `of_forward_bound`: the same network on prepared images and tokens in memory, weights converted once.
- `lowp` is bf16 of ours against Data-Juicer's fp32, as it has nothing lower.
- `same_decision_vs_data_juicer`: five captions an image; both keep the best tenth, and how many pairs are kept by one
  alone is in the table of agreement. Ours uses bf16 and encodes an image once for its captions. No cascade: on random
  weights there is no cheap score to plan one on.
- `orchestration_overhead`: wall time of a Dagster run over {result["overhead"]["shards"]} shards of
  {result["overhead"]["pairs"]} pairs, less that of the engine alone, over the latter. A network of a few thousand
  weights: what a run costs for a shard does not depend on it, so the share falls with larger shards and networks.
- `ray_over_local`: one Ray actor over this process, from the first published shard to the last.
{chr(10).join(left_out)}

Made by `{command} --runs {result["asked_runs"]}`.
"""


def reached(name: str, row: dict[str, Any]) -> str:
    """Whether the median is on the right side of the aim."""
    if name not in AIMS:
        return ""
    better = row["median"] >= AIMS[name] if row["better"] == "higher" else row["median"] <= AIMS[name]
    return "yes" if better else "no"


def aim(name: str) -> str:
    """In words."""
    return f"{AIMS[name]:g}" if name in AIMS else "-"


def document(result: dict[str, Any]) -> str:
    """The page of the documentation."""
    return f"""# Scoring benchmark

How fast pairs are scored, beside Data-Juicer's filter, a plain transformers loop and the bare forward pass, in one run
on one machine. Only ratios travel to other machines.

![Median and range of every ratio, each over its aim](images/{PLOTS["ratios"]})

![Share of the engine's wall time in which each stage was waited for](images/{PLOTS["stages"]})

{tables(result)}"""


def draw(result: dict[str, Any], folder: Path) -> None:
    """Both plots as SVG."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    rows = [(name, row) for name, row in result["ratios"].items() if name in AIMS]
    for at, (name, row) in enumerate(rows):
        low, middle, high = (max(row[key] / AIMS[name], 0.01) for key in ("min", "median", "max"))
        axes.plot([low, high], [at, at], color="#868c95", linewidth=2)
        axes.plot(middle, at, marker="o" if row["better"] == "higher" else "s", color="#3b82c4")
        axes.annotate(
            f"{row['median']:g} (aim {AIMS[name]:g})", (middle, at), xytext=(6, 6), textcoords="offset points"
        )
    axes.axvline(1, color="#c9772d", linestyle="--")
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.3, -0.8)
    axes.set_xlabel("figure / aim: circles are to be right of the line, squares left of it")
    _save(figure, folder / PLOTS["ratios"])
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.add_subplot()
    names, left = list(result["stages"]), [0.0] * len(result["stages"])
    colours = {"read": "#2f9488", "decode": "#c9772d", "forward": "#3b82c4", "write": "#a565b0"}
    for stage, colour in colours.items():
        shares = [result["stages"][name].get(stage, 0.0) * 100 for name in names]
        axes.barh(names, shares, left=left, color=colour, label=stage)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("% of wall time that was waited for")
    figure.legend(loc="outside upper right", ncols=4)
    _save(figure, folder / PLOTS["stages"])


def _save(figure: Any, path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "compalign"}):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
