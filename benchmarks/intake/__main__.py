"""How fast, and in how much memory, shards are read: writes `result.json` and `result.md`.

    python -m benchmarks.intake [--runs 5]

Builds its own shards in a temporary folder, and an environment with webdataset by pip; without a package
index that comparison is left out and says so. About 15 minutes on two cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.intake.shards import write_shards

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WEBDATASET = "webdataset==1.0.2"
PACKAGES = ("compalign-dagster", "numpy", "pillow", "pyarrow")
SPEED = (4, 1000)  # shards, samples in each
MEMORY_SHARDS, MEMORY_SAMPLES = (1, 8, 64), 40
KEYS, FOLDERS = 100_000, 100


def main(runs: int) -> None:
    """Measure everything and write both files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        facts = write_shards(folder / "speed", *SPEED)
        found: list[dict[str, Any]] = []
        listing(folder)
        environment = webdataset_python(folder / "venv")
        places = folder / "places.json"
        for run in range(runs):
            index = measured([*compalign(), "index", "--shards", str(folder / "speed"), "--out", str(folder / "i")])
            if run == 0:
                places.write_text(json.dumps(places_of(folder / "i", folder / "speed")))
            entry: dict[str, Any] = {"run": run, "index": index, "pillow": rival(sys.executable, "pillow", str(places))}
            shards = sorted(str(path) for path in (folder / "speed").iterdir())
            entry["walk"] = rival(sys.executable, "walk", *shards)
            entry["webdataset"] = rival(environment, "webdataset", *shards) if environment else None
            entry["peak_mib"] = {str(count): peak(folder, count) for count in MEMORY_SHARDS}
            entry["list_100k_seconds"] = listing(folder)
            found.append(entry)
            print(json.dumps(entry), flush=True)
    write(facts, found, None if environment else f"pip could not install {WEBDATASET}")


def compalign() -> list[str]:
    """The command line in an interpreter of its own, which says last how much memory it used at most.

    The operating system's own figure for a child starts with what its parent had.
    """
    peak = "next(int(line.split()[1]) >> 10 for line in open('/proc/self/status') if line.startswith('VmHWM'))"
    run = "import sys, json; from compalign_dagster.cli.main import run; code = run(sys.argv[1:])"
    return [sys.executable, "-c", f"{run}; print(json.dumps({{'peak_mib': {peak}}})); sys.exit(code)"]


def measured(command: list[str]) -> dict[str, Any]:
    """CPU seconds of a whole process, imports included, and what its last line of JSON says."""
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True) as process:
        assert process.stdout is not None
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} left with {process.returncode}")
    last = out.strip().splitlines()[-1] if out.strip() else ""
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
        "seconds": round(time.monotonic() - started, 3),
        **(json.loads(last) if last.startswith("{") else {}),
    }


def rival(python: str, name: str, *arguments: str) -> dict[str, Any]:
    """One of the programs of `rivals.py`."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})" if python == sys.executable else "pass"
    run = f"{code}; import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return measured([python, "-c", f"import sys; {run}", str(HERE / "rivals.py"), name, *arguments])


def places_of(index: Path, folder: Path) -> dict[str, list[tuple[int, int]]]:
    """Where the images lie, by shard."""
    import pyarrow.parquet as pq

    found: dict[str, list[tuple[int, int]]] = {}
    for row in pq.read_table(index / "pairs.parquet", columns=["shard", "image_offset", "image_length"]).to_pylist():
        found.setdefault(str(folder / row["shard"]), []).append((row["image_offset"], row["image_length"]))
    return found


def peak(folder: Path, shards: int) -> int:
    """Peak memory of indexing so many shards, MiB."""
    crawl = folder / f"memory-{shards}"
    if not crawl.exists():
        write_shards(crawl, shards, MEMORY_SAMPLES)
    command = [*compalign(), "index", "--shards", str(crawl), "--out", str(folder / "m")]
    return measured(command)["peak_mib"]


def listing(folder: Path) -> float:
    """Seconds to list 100,000 objects of a local store; the first call makes them."""
    from compalign_dagster.store import LocalStore

    root = folder / "keys"
    if not root.exists():
        for at in range(FOLDERS):
            (root / f"{at:03d}").mkdir(parents=True)
            for number in range(KEYS // FOLDERS):
                (root / f"{at:03d}" / f"{number:05d}.tar").touch()
    started = time.monotonic()
    count = sum(1 for _ in LocalStore(root).list())
    assert count == KEYS, count
    return round(time.monotonic() - started, 3)


def webdataset_python(folder: Path) -> str | None:
    """An interpreter that has webdataset, in an environment thrown away afterwards; None without a package index."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "-q", WEBDATASET], capture_output=True, text=True)
    return str(python) if done.returncode == 0 else None


def ratio(runs: list[dict[str, Any]], figure: Callable[[dict], float], unit: str, better: str) -> dict[str, Any]:
    """Median and range over the runs."""
    values = [figure(run) for run in runs]
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3),
            "n": len(values), "unit": unit, "better": better}  # fmt: skip


def write(facts: dict[str, Any], runs: list[dict[str, Any]], skipped: str | None) -> None:
    """`result.json` and `result.md`."""
    ratios = {
        "index_vs_pillow_decode": ratio(
            runs, lambda run: run["pillow"]["cpu_seconds"] / run["index"]["cpu_seconds"],
            "images per CPU-second, over Pillow's", "higher",
        ),
        "peak_mib": ratio(runs, lambda run: run["peak_mib"]["64"], "MiB, 64 shards", "lower"),
        "peak_64_vs_1_shards": ratio(
            runs, lambda run: run["peak_mib"]["64"] / run["peak_mib"]["1"], "peak memory, over one shard's", "lower"
        ),
        "list_100k_seconds": ratio(runs, lambda run: run["list_100k_seconds"], "s, local disk", "lower"),
    }  # fmt: skip
    if skipped is None:
        ratios["header_index_vs_webdataset"] = ratio(
            runs, lambda run: run["webdataset"]["cpu_seconds"] / run["walk"]["cpu_seconds"],
            "members per CPU-second, over webdataset's", "higher",
        )  # fmt: skip
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "webdataset": skipped or WEBDATASET.partition("==")[2],
        },
        "shards": facts,
        "runs": runs,
        "ratios": ratios,
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    (HERE / "result.md").write_text(page(result))


def page(result: dict[str, Any]) -> str:
    """The same figures for people."""
    facts = result["shards"]
    rows = [
        f"| `{name}` | {row['median']:,} | {row['min']:,} to {row['max']:,} | {row['n']} | {row['unit']} |"
        for name, row in sorted(result["ratios"].items())
    ]
    return f"""# Intake

Limits: one machine ({result["machine"]["cores"]} cores, shared with other work, therefore CPU-seconds); the files
were in the page cache; rendered JPEGs with the grain of photographs, not photographs.

{facts["shards"]} shards of {facts["samples_per_shard"]:,} samples (image, caption, record); images of 640 x 480 at
quality 90, {facts["mean_image_bytes"]:,} bytes on average.

| figure | median | range | runs | unit |
| --- | ---: | ---: | ---: | --- |
{chr(10).join(rows)}

- `index_vs_pillow_decode`: the whole process of `compalign index` (imports, tar, every image verified to its last
  byte, SHA-256 of images and shards, perceptual hash, captions, Parquet) against a process in which Pillow
  decodes the same images fully and does nothing else. Verifying reads every image to its end too, but makes it
  small and grey, which is why all of it may cost as little as the full decode alone.
- `header_index_vs_webdataset`: listing the members of the shards. webdataset's iterator hands out each member's
  bytes, which is the only way it has; ours passes them.
- `peak_mib`: `compalign index` on 1, 8 and 64 shards of {MEMORY_SAMPLES} samples; flat means that memory does not
  follow the number of shards.

Made by `python -m benchmarks.intake`.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    main(parser.parse_args().runs)
