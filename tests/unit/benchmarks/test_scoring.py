import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scoring import figures, inputs, page, serving
from benchmarks.scoring.__main__ import beside
from benchmarks.scoring.sides import indexed


def one_run(number, **cpu_seconds):
    """A run of ten pairs in which every side took as many CPU-seconds as is said."""
    itm = [at / 10 for at in range(10)]
    stages = {"read": 0.0, "decode": 0.1, "forward": 0.9, "write": 0.0}
    entries = []
    for side, seconds in cpu_seconds.items():
        name, _, work = side.replace("_", " ").rpartition("  ")
        entry = {"run": number, "side": name.replace(" ", "_"), "work": work, "pairs": 10, "itm": itm}
        entries.append({**entry, "seconds": seconds, "cpu_seconds": seconds})
        if name == "engine":
            entries[-1]["stages"] = stages
    return entries


def test_a_ratio_is_taken_run_by_run_and_more_pairs_per_second_are_more():
    runs = one_run(0, engine__fp32_one=1.0, data_juicer__one=2.0, bare__fp32_one=0.9)
    runs += one_run(1, engine__fp32_one=10.0, data_juicer__one=30.0, bare__fp32_one=9.0)
    found = figures.ratios(runs)
    assert found["vs_data_juicer_fp32_1cap"] == {
        "median": 2.5,
        "min": 2.0,
        "max": 3.0,
        "n": 2,
        "unit": "pairs per CPU-second, over Data-Juicer's",
        "better": "higher",
    }
    assert found["of_forward_bound"]["median"] == 0.9
    assert "vs_transformers_loop" not in found, "what was not run has no ratio"


def test_turns_that_went_backwards_are_paired_by_run():
    runs = one_run(1, data_juicer__one=30.0, engine__fp32_one=10.0) + one_run(
        0, engine__fp32_one=1.0, data_juicer__one=2.0
    )
    found = figures.ratios(runs)["vs_data_juicer_fp32_1cap"]
    assert (found["min"], found["max"]) == (2.0, 3.0)


def test_overhead_is_what_a_run_takes_beyond_the_engine():
    runs = [{"run": 0, "side": "direct", "work": "overhead", "shards": 100, "seconds": 10.0},
            {"run": 0, "side": "dagster", "work": "overhead", "shards": 100, "seconds": 10.5}]  # fmt: skip
    found = figures.ratios(runs)
    assert found["orchestration_overhead"]["median"] == 0.05
    assert found["orchestration_ms_per_shard"]["median"] == 5


def test_scores_that_disagree_are_said_to():
    runs = one_run(0, engine__fp32_one=1.0, data_juicer__one=1.0)
    (same,) = figures.agreement(runs)
    assert same["tolerated"]
    assert same["correlation"] == 1
    runs[0]["itm"] = runs[0]["itm"][::-1]
    (other,) = figures.agreement(runs)
    assert not other["tolerated"]
    assert other["changed"].startswith("2 ")


def test_a_part_that_is_measured_again_leaves_the_others_as_they_were():
    def result(load: str, value: int, *runs: dict) -> dict:
        names = {run["side"]: value for run in runs}
        return {"machine": {"load": load}, "inputs": load, "ratios": names, "rates": [], "agreement": [], "stages": {},
                "runs": list(runs)}  # fmt: skip

    engine, overhead = {"side": "engine", "work": "fp32 one"}, {"side": "dagster", "work": "overhead"}
    memory = {"side": "memory", "work": "1"}
    earlier = result("9.0", 1, engine, overhead, memory) | {"rates": ["kept"]}
    found = beside(earlier, result("0.1", 2, {**overhead, "run": 7}), ["overhead"])
    assert found["runs"] == [engine, memory, {**overhead, "run": 7}]
    assert found["ratios"] == {"engine": 1, "dagster": 2, "memory": 1}
    assert found["machine"]["load"] == "0.1 (overhead), 9.0 (the rest)"
    assert (found["rates"], found["inputs"]) == (["kept"], "9.0")


def test_the_pages_tell_what_was_reached_and_what_was_left_out(tmp_path):
    runs = one_run(0, engine__fp32_one=1.0, data_juicer__one=2.0, bare__fp32_one=0.5)
    result = {
        "machine": {"processor": "P", "cores": 2, "memory_gib": 4, "accelerator": "no GPU", "system": "S", "load": "0"},
        "versions": {"torch": "1"},
        "inputs": {
            "images": "rendered",
            "mean_image_bytes": 1000,
            "pairs": {"one": 10, "five": 10},
            "parameters": 25_000_000,
        },
        "overhead": {"shards": 6, "pairs": 8},
        "asked_runs": 1,
        "left_out": [{"what": "Ray", "reason": "it is not installed"}],
        **figures.figures(runs),
    }
    told = page.document(result)
    assert (
        "| `vs_data_juicer_fp32_1cap` | 2.0 | 2.0 to 2.0 | 1 | pairs per CPU-second, over Data-Juicer's | 1.5 | yes |"
        in told
    )
    assert "| `of_forward_bound` | 0.5 |" in told
    assert "0.9 | no |" in told
    assert "Left out: Ray, it is not installed." in told
    page.draw(result, tmp_path)
    for name in page.PLOTS.values():
        assert "<image" not in (tmp_path / name).read_text(), "a plot holds no picture"
    json.dumps(figures.without_scores(runs), allow_nan=False)


@pytest.mark.slow
def test_every_side_gets_the_same_pairs_and_the_same_bytes(tmp_path):
    facts = inputs.make(tmp_path / "in", None, one=3, five=2)
    assert facts["pairs"] == {"one": 3, "five": 10}
    for name in ("one", "five"):
        _, index = indexed(tmp_path / "in", name)
        listed = inputs.pairs(tmp_path / "in", name)
        assert index.pairs["caption"].to_pylist() == [pair["caption"] for pair in listed]
        tar = (tmp_path / "in" / f"{name}.tar").read_bytes()
        for row, pair in zip(index.pairs.to_pylist(), listed, strict=True):
            found = tar[row["image_offset"] : row["image_offset"] + row["image_length"]]
            assert found == Path(pair["image"]).read_bytes()


PROGRAM = """
import sys
from benchmarks.scoring.serving import serve
def busy():
    return {"value": sum(at * at for at in range(3_000_000))}
def chatty():
    print("noise on standard output")
    return busy
serve({"busy": chatty})
"""


def test_a_program_answers_each_question_with_its_time_and_its_noise_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "noisy.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{serving.ROOT}")
    with serving.Program(sys.executable, "noisy") as program:
        assert program.works == ["busy"]
        for _ in range(2):
            said = program.ask("busy")
            assert said["value"] == sum(np.arange(3_000_000, dtype=object) ** 2)
            assert said["cpu_seconds"] > 0
            assert said["seconds"] > 0


def test_a_program_that_dies_is_said_to_have(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{serving.ROOT}")
    with pytest.raises(RuntimeError, match="dying left with 3"):
        serving.Program(sys.executable, "dying")
