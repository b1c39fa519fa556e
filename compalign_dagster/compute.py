"""What a step needs of a machine, said once and rendered for each engine that must know it.

What belongs here: the needs, their renderings, the choice of a device. What does not: how an engine
is started. Imports the standard library only; torch is imported when a device is picked.
"""

from dataclasses import dataclass
from typing import Any

from compalign_dagster.errors import InputError

DEVICES = ("auto", "cpu", "cuda")
_GIB = 1 << 30


@dataclass(frozen=True)
class Needs:
    """GPUs and memory of one worker of a step; `pool` names what limits how many run at once."""

    gpus: int = 0
    memory_gib: float = 2.0
    pool: str | None = None

    def dagster_pool(self) -> str | None:
        """The Dagster concurrency pool: the one named, else `gpu` for whatever needs one."""
        return self.pool or ("gpu" if self.gpus else None)

    def k8s_op_tags(self) -> dict[str, Any]:
        """Op tags from which Dagster's Kubernetes executor makes requests and limits."""
        memory = f"{round(self.memory_gib * 1024)}Mi"
        limits = {"memory": memory} | ({"nvidia.com/gpu": str(self.gpus)} if self.gpus else {})
        resources = {"requests": {"memory": memory}, "limits": limits}
        return {"dagster-k8s/config": {"container_config": {"resources": resources}}}

    def ray_options(self) -> dict[str, float]:
        """Options of a Ray task or actor; memory in bytes."""
        return {"num_gpus": self.gpus, "memory": round(self.memory_gib * _GIB)}


def pick_device(wanted: str = "auto") -> str:
    """`cpu`, `cuda` or `cuda:1` for a wish; `auto` takes what there is.

    Raises `InputError` for a wish that cannot be met: it never falls back from what was asked for.
    """
    name, numbered, number = wanted.partition(":")
    if name not in DEVICES or (numbered and (name != "cuda" or not number.isdecimal())):
        raise InputError(
            "setting device",
            expected=f"one of {', '.join(DEVICES)}, or cuda:NUMBER",
            found=repr(wanted),
            remedy="Choose one.",
        )
    if name == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count():
        return wanted if name == "cuda" else "cuda"
    if name == "cuda":
        raise InputError(
            f"device {wanted!r}",
            expected="a CUDA device that torch can use",
            found=_instead(),
            remedy="Set the device to auto or cpu, or install a CUDA build of torch on a machine with a GPU.",
        )
    return "cpu"


def worker_devices(wanted: str, workers: int | None = None) -> list[str]:
    """A device for each worker of this machine: the GPUs in turn, one each if `workers` is None; else `cpu`, one.

    Raises `InputError` as `pick_device` does.
    """
    device = pick_device(wanted)
    if device == "cuda":
        import torch

        there = torch.cuda.device_count()
        return [f"cuda:{at % there}" for at in range(workers or there)]
    return [device] * (workers or 1)


def _instead() -> str:
    """What there is where a CUDA device was wished for."""
    import torch

    if not torch.version.cuda:
        return f"torch {torch.__version__}, built without CUDA"
    return f"{torch.cuda.device_count()} of them" if torch.cuda.is_available() else "none"
