import pytest

from compalign_dagster.scoring.speed import speed
from compalign_dagster.scoring.usage import Usage


def shard(seconds: float, worker: str = "a", **facts: object) -> dict:
    return {
        "seconds": seconds, "scored": 900, "quarantined": 100, "worker": worker, "device": "NVIDIA H100",
        "stages": {"read": 0.25, "forward": 0.75}, "cpu_seconds_per_second": 1.0, "gpu_utilisation": 0.5,
        "batch_images": 32, "halved": 0, **facts,
    }  # fmt: skip


def test_cost_is_that_of_the_devices_and_speed_that_of_all_together():
    found = speed([shard(10), shard(10, "b")], wall_seconds=12, hour_cost=3.6)
    assert found["pairs_per_second"] == pytest.approx(2000 / 12, abs=0.1)
    assert found["device_seconds_per_million_pairs"] == 10_000
    assert found["cost_per_million_pairs"] == 10
    assert (found["workers"], found["devices"], found["pairs_scored"]) == (2, "NVIDIA H100", 2000)


def test_shares_count_by_the_time_they_are_of():
    found = speed([shard(30), shard(10, stages={"read": 1.0}, gpu_utilisation=None, halved=2, batch_images=8)], 40)
    assert found["stages"] == {"forward": 0.5625, "read": 0.4375}
    assert found["gpu_utilisation"] == 0.5
    assert (found["halved"], found["batch_images"]) == (2, 8)
    assert found["cost_per_million_pairs"] is None


def test_nothing_that_was_scored_has_no_speed():
    assert speed([], 1.0) == {}
    assert speed([shard(1, scored=0, quarantined=0)], 1.0) == {}


def test_a_busy_process_uses_about_a_cpu_second_a_second_and_a_cpu_has_no_gpu():
    usage, total = Usage("cpu"), 0
    for number in range(300_000):
        total += number
    usage.look()
    found = usage.since_last()
    assert found["cpu_seconds_per_second"] > 0.02
    assert found["gpu_utilisation"] is None
