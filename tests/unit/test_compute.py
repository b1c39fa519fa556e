import sys

import pytest

from compalign_dagster.compute import Needs, pick_device
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


def test_a_wish_for_the_cpu_never_imports_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert pick_device("cpu") == "cpu"
