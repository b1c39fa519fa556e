import sys

import pytest

from compalign_dagster.compute import Needs, pick_device, worker_devices
from compalign_dagster.errors import InputError


def test_a_gpu_is_said_once_and_rendered_for_every_engine():
    needs = Needs(gpus=1, memory_gib=1.5)
    assert needs.dagster_pool() == "gpu"
    resources = needs.k8s_op_tags()["dagster-k8s/config"]["container_config"]["resources"]
    assert resources == {"requests": {"memory": "1536Mi"}, "limits": {"memory": "1536Mi", "nvidia.com/gpu": "1"}}
    assert needs.ray_options() == {"num_gpus": 1, "memory": 1536 * 2**20}


def test_a_cpu_step_asks_for_no_gpu_and_no_pool():
    needs = Needs()
    assert needs.dagster_pool() is None
    assert "nvidia.com/gpu" not in str(needs.k8s_op_tags())
    assert needs.ray_options()["num_gpus"] == 0


def test_a_named_pool_wins():
    assert Needs(gpus=1, pool="big").dagster_pool() == "big"


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(InputError, match=r"setting device.*'tpu'"):
        pick_device("tpu")


def test_cuda_without_one_says_what_to_do(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(InputError, match="auto or cpu"):
        pick_device("cuda")


@pytest.fixture
def two_gpus(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_a_gpu_may_be_asked_for_by_its_number(two_gpus):
    assert pick_device("cuda:1") == "cuda:1"
    assert pick_device("auto") == "cuda"
    with pytest.raises(InputError, match=r"device 'cuda:2'"):
        pick_device("cuda:2")


@pytest.mark.parametrize("wish", ["cuda:", "cuda:x", "cuda:-1", "cpu:1", "auto:0", ""])
def test_a_device_that_is_not_written_so_is_refused(two_gpus, wish):
    with pytest.raises(InputError, match="setting device"):
        pick_device(wish)


def test_each_worker_has_a_gpu_of_its_own_until_there_are_more_workers(two_gpus):
    assert worker_devices("cuda") == ["cuda:0", "cuda:1"]
    assert worker_devices("auto", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_devices("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert worker_devices("cpu", 3) == ["cpu"] * 3
    assert worker_devices("cpu") == ["cpu"]


def test_a_wish_for_the_cpu_never_imports_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert pick_device("cpu") == "cpu"
