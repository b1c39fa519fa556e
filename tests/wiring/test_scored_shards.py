"""What the UI shows of a batch that is scored: on what, how fast, at what cost, while it runs and afterwards."""

import logging
import time

import dagster as dg
import pytest

from assets import progress
from assets.needs import scoring
from assets.progress import observed
from compalign_dagster.definitions import build_defs
from compalign_dagster.reward import folder
from compalign_dagster.settings import load
from tests.support.pipeline import BATCH, Pipeline, failures, metadata_of
from tests.support.scoring import manifests, prepare


@pytest.fixture
def scene(tmp_path):
    """A pipeline over two indexed shards of a promoted model, under given settings."""
    prepare(tmp_path / "home")

    def under(**settings: object) -> Pipeline:
        given = load(home=tmp_path / "home", **{"device": "cpu", "score_batch_images": 2, **settings})
        instance = dg.DagsterInstance.ephemeral()
        instance.add_dynamic_partitions("crawl_batch", [BATCH])
        return Pipeline(given, build_defs(settings=given), instance)

    return under


def test_the_materialisation_says_where_how_fast_and_at_what_cost(scene):
    shown = metadata_of(scene(device_hour_cost=3.6).must("score_batch", BATCH), "scored_shards")
    assert (shown["engine"], shown["pool"], shown["devices"], shown["workers"]) == ("here", "scoring", "cpu", 1)
    assert shown["pairs_per_second"] > 0
    assert shown["cpu_seconds_per_second"] > 0
    assert "gpu_utilisation" not in shown
    assert shown["cost_per_million_pairs"] == pytest.approx(shown["device_seconds_per_million_pairs"] / 1000, rel=0.01)
    assert all(share.endswith("%") for share in shown["bottleneck"].values())
    again = metadata_of(scene().must("score_batch", BATCH), "scored_shards")
    assert again["reused"]
    assert again["pairs_per_second"] == shown["pairs_per_second"]


def test_progress_is_observed_while_it_runs(scene, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_OBSERVATIONS", 0.0)
    pipeline = scene()
    pipeline.must("score_batch", BATCH)
    records = pipeline.instance.fetch_observations(dg.AssetKey("scored_shards"), limit=100).records
    seen = [record.event_log_entry.dagster_event.asset_observation_data.asset_observation for record in records][::-1]
    assert {event.partition for event in seen} == {BATCH}
    done = [event.metadata["pairs_done"].value for event in seen]
    (total,) = {event.metadata["pairs"].value for event in seen}
    assert done == sorted(done)
    assert 0 == done[0] < done[1] < done[-1] < total
    assert seen[-1].metadata["pairs_per_second"].value > 0
    assert seen[-1].metadata["seconds_left"].value >= 0
    assert seen[-1].metadata["engine"].value == "here"


def observations_and_lines(monkeypatch, caplog, *, seconds: int) -> tuple[int, int]:
    """Of work that reports every second for so long."""
    events, now = [], [0.0]

    class Context:
        asset_key, has_partition_key = dg.AssetKey("a"), False
        log_event = events.append

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        tell = observed(Context())
        for done in range(seconds):
            now[0] = float(done)
            tell(done, seconds, "pairs")
    return len(events), len(caplog.records)


def test_a_short_step_says_often_how_far_it_is_and_a_long_one_does_not_fill_the_event_log(monkeypatch, caplog):
    events, lines = observations_and_lines(monkeypatch, caplog, seconds=120)
    assert (events, lines) == (3, 24)
    events, lines = observations_and_lines(monkeypatch, caplog, seconds=36_000)
    assert events < 2 * 36_000 / 120
    assert lines < 2 * 36_000 / 60


def test_without_the_gpu_that_is_asked_for_the_step_fails_before_a_model_is_loaded(scene, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(folder, "load_model", None)
    result = scene(device="cuda").run("score_batch", BATCH)
    assert not result.success
    assert "device 'cuda': expected a CUDA device that torch can use" in "\n".join(failures(result))
    assert manifests(tmp_path / "home") == []


@pytest.mark.parametrize(
    ("settings", "gpus", "gib"),
    [
        ({"device": "cpu"}, 0, 4.0),
        ({"device": "cuda"}, 1, 4.0),
        ({"device": "cuda", "engine": "devices", "score_workers": 8}, 8, 32.0),
        ({"device": "cuda", "engine": "ray", "score_workers": 8, "ray_address": "leader:6379"}, 0, 2.0),
        ({"device": "cuda", "engine": "ray", "score_workers": 2}, 2, 8.0),
    ],
)
def test_a_step_asks_for_the_machine_that_its_workers_run_on(settings, gpus, gib):
    needs = scoring(load(**settings))
    assert (needs.gpus, needs.memory_gib, needs.dagster_pool()) == (gpus, gib, "scoring")
