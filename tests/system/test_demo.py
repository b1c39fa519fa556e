import json
import time

import dagster as dg
import pyarrow.parquet as pq
import pytest

from compalign_dagster import artifacts, latest
from compalign_dagster.store import LocalStore
from tests.support.processes import compalign

pytestmark = [pytest.mark.slow, pytest.mark.system]


def test_the_demo_ends_in_a_report_and_a_dataset_that_can_be_opened(demo, tmp_path):
    for page in ("report", "dataset"):
        assert demo.path(page).read_text().startswith("<!doctype html>")
    assert "files    compalign export --out FOLDER" in demo.output
    exported = compalign("export", "--out", tmp_path / "files", env=demo.env)
    assert exported.returncode == 0, exported.stderr
    assert pq.read_metadata(tmp_path / "files" / "kept.parquet").num_rows == 1200


def test_a_warning_of_the_demo_is_called_one_and_says_what_was_found(demo):
    assert "check failed" not in demo.output
    told = [line for line in demo.output.splitlines() if line.startswith("warning: ")]
    assert any("caption_length" in line and "candidates kept" in line for line in told), demo.output


def test_the_run_history_is_in_the_instance(demo, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(demo.home.absolute() / "dagster"))
    with dg.DagsterInstance.get() as instance:
        runs = instance.get_runs()
        assert {run.job_name for run in runs} >= {
            "land_batch",
            "learn_reward",
            "score_batch",
            "refilter",
            "evaluate",
        }
        assert all(run.is_success for run in runs)
        for name in ("reward_model", "promoted_model", "filtered_dataset", "eval_report"):
            assert instance.get_latest_materialization_event(dg.AssetKey(name)), name


def test_the_referee_passed_its_gate_on_held_out_images(demo):
    metrics = latest.require(LocalStore(demo.home / "store"), "reward_model").facts["metrics"]
    assert metrics["preference_accuracy"]["low"] > 0.5
    assert metrics["cross_image_auc"]["low"] > 0.6


def test_the_demo_again_recomputes_nothing_and_says_so(demo):
    before = {path for path in (demo.home / "store").rglob("*") if path.is_file()}
    started = time.monotonic()
    again = compalign("demo", env=demo.env)
    assert again.returncode == 0, again.stderr
    assert "nothing recomputed" in again.stdout
    print(f"second run: {time.monotonic() - started:.1f} s")
    assert {path for path in (demo.home / "store").rglob("*") if path.is_file()} == before


def test_every_artifact_of_the_demo_verifies_and_fits_an_event(demo):
    store = LocalStore(demo.home / "store")
    manifests = [entry.key for entry in store.list() if entry.key.endswith("/manifest.json")]
    assert len(manifests) > 10
    for key in manifests:
        artifact = artifacts.load(store, key)
        artifact.verify()
        assert len(json.dumps(artifact.facts)) < 64 * 1024, key


def test_no_asset_reads_the_ground_truth(demo):
    store = LocalStore(demo.home / "store")
    for entry in store.list():
        if entry.key.endswith("/manifest.json"):
            assert "truth" not in json.dumps(artifacts.load(store, entry.key).manifest["inputs"])
