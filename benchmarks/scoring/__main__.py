"""How fast pairs are scored, beside other programs: writes `result.json`, `result.md` and `docs/scoring-benchmark.md`.

    python -m benchmarks.scoring [--datapack DIR] [--runs 5] [--only PART ...] [--quick] [--out FOLDER]

Parts: engine (with all rivals), overhead (Dagster and Ray), memory; with `--only`, what was measured of the others
stays. Makes Data-Juicer's environment by pip from
`rivals.txt` in `.venv-data-juicer`; where that fails, it says so and measures the rest. Half an hour on two
cores. `--quick` shows that everything runs, in files of its own under `--out`; its figures mean nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.scoring import figures, inputs, page
from benchmarks.scoring.serving import ROOT, Program

HERE = Path(__file__).parent
DOCS = ROOT / "docs"
RIVAL = ROOT / ".venv-data-juicer"
PACKAGES = ("compalign-dagster", "dagster", "ray", "torch", "transformers", "pillow")
PARTS = ("engine", "overhead", "memory")
CORES = len(os.sched_getaffinity(0))
FULL: dict[str, Any] = {"one": 96, "five": 50, "shards": 100, "pairs": 300, "memory": (1, 64), "memory_images": 4}
QUICK: dict[str, Any] = {"one": 16, "five": 8, "shards": 6, "pairs": 8, "memory": (1, 4), "memory_images": 4}


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts and write the files."""
    sizes = QUICK if options.quick else FULL
    parts, runs, left_out = options.only or PARTS, list[dict[str, Any]](), list[dict[str, str]]()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    with tempfile.TemporaryDirectory(prefix="scoring-") as work:
        folder = Path(work)
        facts = inputs.make(folder / "in", options.datapack, one=sizes["one"], five=sizes["five"])
        measure = {
            "engine": lambda: side_by_side(folder / "in", options.runs, left_out),
            "overhead": lambda: round_the_engine(folder / "home", sizes, options.runs, left_out),
            "memory": lambda: peaks(folder / "small", options.datapack, sizes),
        }
        for part in parts:
            try:
                runs += measure[part]()
            except (RuntimeError, subprocess.CalledProcessError) as error:  # a failure is told beside what was measured
                left_out.append({"what": part, "reason": f"it failed: {error}"[:300]})
    result = {
        "machine": machine() | {"load": load},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "inputs": facts,
        "overhead": {"shards": sizes["shards"], "pairs": sizes["pairs"]},
        "asked_runs": options.runs,
        "left_out": left_out,
        **figures.figures(runs),
        "runs": figures.without_scores(runs),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only and (options.out / "result.json").is_file():
        result = beside(json.loads((options.out / "result.json").read_text()), result, parts)
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "result.md").write_text(f"# Scoring\n\n{page.tables(result)}")
    docs = DOCS if options.out == HERE else options.out
    page.draw(result, docs / "images")
    (docs / "scoring-benchmark.md").write_text(page.document(result))
    return result


def beside(earlier: dict[str, Any], result: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """`result` of some parts, with what an earlier run says of the others."""
    was, now = earlier["machine"]["load"], result["machine"]["load"]
    tables = {name: result[name] or earlier[name] for name in ("rates", "agreement", "stages")}
    return {
        **result,
        **tables,
        "machine": result["machine"] | {"load": f"{now} ({', '.join(parts)}), {was} (the rest)"},
        "inputs": result["inputs"] if "engine" in parts else earlier["inputs"],
        "ratios": {**earlier["ratios"], **result["ratios"]},
        "runs": [*(run for run in earlier["runs"] if _part_of(run) not in parts), *result["runs"]],
    }


def _part_of(run: dict[str, Any]) -> str:
    return next((name for name in ("overhead", "memory") if name in (run["side"], run["work"])), "engine")


def side_by_side(folder: Path, runs: int, left_out: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Everything that scores the same pairs, in turns."""
    precisions = ["fp32", "bf16"] if "avx512_bf16" in _flags() or "amx_bf16" in _flags() else ["fp32"]
    if len(precisions) == 1:
        left_out.append({"what": "bf16", "reason": "this processor computes it no faster than fp32"})
    rival, reason = data_juicer_python()
    if rival is None:
        left_out.append({"what": "Data-Juicer", "reason": reason})
    sides = "benchmarks.scoring.sides"
    low = precisions[-1]
    with ExitStack() as stack:
        programs = {
            name: Program(sys.executable, sides, name, folder, *precisions) for name in ("engine", "bare", "loop")
        }
        programs["engine, all cores"] = Program(sys.executable, sides, "engine", folder, low, threads=CORES)
        turns = [(name, f"{precision} one") for precision in precisions for name in ("engine", "bare", "loop")]
        turns += [("engine", f"{precision} five") for precision in precisions]
        turns.append(("engine, all cores", f"{low} five"))
        if rival:
            module = "benchmarks.scoring.data_juicer"
            programs["data_juicer"] = Program(rival, module, folder, 1)
            programs["data_juicer, all cores"] = Program(rival, module, folder, CORES)
            turns = [("data_juicer", "one"), *turns, ("data_juicer", "five"), ("data_juicer, all cores", "five")]
        for program in programs.values():
            stack.enter_context(program)
        for name, work in turns:
            if not name.startswith("data_juicer"):
                programs[name].ask(work)  # once before it counts: batch sizes are chosen, code is warm
        return [_said({"run": run, "side": name, "work": work, **programs[name].ask(work)})
                for run in range(runs) for name, work in (turns if run % 2 == 0 else turns[::-1])]  # fmt: skip


def round_the_engine(
    home: Path, sizes: dict[str, Any], runs: int, left_out: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """The engine alone against a Dagster run, and in this process against Ray."""
    turns = ["direct", "dagster", "here"]
    if find_spec("ray"):
        turns.append("ray")
    else:
        left_out.append({"what": "Ray", "reason": "the extra 'ray' is not installed"})
    with Program(sys.executable, "benchmarks.scoring.overhead", home, sizes["shards"], sizes["pairs"]) as program:
        program.ask("direct")  # warm
        return [_said({"run": run, "side": name, "work": "overhead", "shards": sizes["shards"], **program.ask(name)})
                for run in range(runs) for name in turns]  # fmt: skip


def peaks(folder: Path, datapack: Path | None, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """Peak memory of scoring so many shards, each in a process of its own, once: it hardly varies."""
    inputs.make(folder, datapack, one=sizes["memory_images"], five=1)
    found = []
    for count in sizes["memory"]:
        command = [sys.executable, "-m", "benchmarks.scoring.overhead", "memory", str(folder), str(count)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        said = json.loads(done.stdout.strip().splitlines()[-1])
        found.append(_said({"run": 0, "side": "memory", "work": str(count), **said}))
    return found


def data_juicer_python() -> tuple[Path | None, str]:
    """An interpreter that has Data-Juicer, made here where there is none; None and why where that fails."""
    python, wanted = RIVAL / "bin" / "python", (HERE / "rivals.txt").read_text()
    stamp = RIVAL / "rivals.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python, ""
    subprocess.run([sys.executable, "-m", "venv", str(RIVAL)], check=True)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(HERE / "rivals.txt")]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        return None, "pip could not install it: " + (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    stamp.write_text(wanted)
    return python, ""


def machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator, operating system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    low = sorted(_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"})
    return {
        "processor": f"{model or platform.machine()} ({', '.join(low)})",
        "cores": CORES,
        "memory_gib": round(memory, 1),
        "accelerator": "no GPU",
        "system": platform.system(),
    }


def _flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _said(entry: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps({key: value for key, value in entry.items() if key not in ("itm", "stages")}), flush=True)
    return entry


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datapack", type=lambda name: Path(name).absolute(), help="root folder of the data pack")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--out", type=lambda name: Path(name).absolute(), help="where the files go")
    chosen = parser.parse_args()
    chosen.out = chosen.out or (Path(tempfile.gettempdir()) / "scoring-quick" if chosen.quick else HERE)
    apart = [row["what"] for row in main(chosen)["agreement"] if not row["tolerated"]]
    sys.exit(f"scores that should agree do not: {'; '.join(apart)}" if apart else 0)
