"""The machine of a training: an accelerator, and where several processes train one model, those processes.

What belongs here: starting and ending workers, their meeting place on loopback, accelerate's settings. What does
not: what they compute.
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.reward.config import RewardConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

_PATIENCE = timedelta(minutes=30)  # that a process waits for another: rank 0 validates meanwhile
_LAST_WORDS = 10.0  # s for a worker to leave by itself
_ONE_AT_A_TIME = threading.Lock()  # torch's generators and accelerate's state belong to the process


def together(
    lead: Callable[["Accelerator"], T],
    follow: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    config: RewardConfig,
    device: str,
) -> T:
    """`lead(accelerator)` here, as rank 0, and `follow(accelerator, *arguments)` in `config.processes - 1` others.

    `follow` is a function of a module, for it is found by its name in a new interpreter; `arguments` are copied
    there. Only one training runs in a process at a time. Raises `InputError` where the device cannot do what
    `config` asks for, and `CompalignError` when a worker died.
    """
    check_device(config, device)
    with _ONE_AT_A_TIME:
        if config.processes == 1:
            return lead(_accelerator(config, device))
        return _led(lead, follow, arguments, config, device)


def check_device(config: RewardConfig, device: str) -> None:
    """Raise `InputError` for a precision or a number of processes that the device (`cpu`, `cuda`) does not offer."""
    if config.precision == "fp16" and device == "cpu":
        raise InputError(
            "reward setting 'precision'",
            expected="fp32 or bf16 on a CPU",
            found="fp16, whose scaled gradients need a GPU",
            remedy="Set it to bf16 or fp32, or train on a GPU.",
        )
    if device == "cuda" and config.processes > torch.cuda.device_count():
        raise InputError(
            "reward setting 'processes'",
            expected=f"at most one for each of {torch.cuda.device_count()} GPUs",
            found=str(config.processes),
            remedy="Lower it; accumulation may stay as it is.",
        )


def _accelerator(config: RewardConfig, device: str) -> "Accelerator":
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)  # another training of this process left its own
    GradientState._reset_state()
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_steps=config.accumulation // config.processes,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_PATIENCE),
            DistributedDataParallelKwargs(find_unused_parameters=True),  # each stage trains heads of its own
        ],
    )


def _led(
    lead: Callable[["Accelerator"], T],
    follow: Callable[..., None],
    arguments: tuple[Any, ...],
    config: RewardConfig,
    device: str,
) -> T:
    from accelerate.utils import patch_environment

    port = _free_port()
    ready = torch.multiprocessing.get_context("spawn").Semaphore(0)
    workers: Any = torch.multiprocessing.start_processes(
        _worker,
        (ready, port, config, device, follow, arguments),
        nprocs=config.processes - 1,
        join=False,
        daemon=True,
        start_method="spawn",
    )
    try:
        _all_started(workers.processes, ready)
        with patch_environment(**_place(0, config.processes, port)):
            accelerator = _accelerator(config, device)
            return lead(accelerator)
    except RuntimeError as error:  # what torch.distributed raises when it has lost a process
        for process in workers.processes:
            process.join(_LAST_WORDS)
        _refuse_dead(workers.processes, error)
        raise
    finally:
        for process in workers.processes:
            process.join(_LAST_WORDS if sys.exc_info()[0] is None else 0)
            process.terminate()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _all_started(processes: list[Any], ready: Any) -> None:
    """Wait until every worker can meet the others; for one that never comes rank 0 would wait half an hour."""
    for _ in processes:
        while not ready.acquire(timeout=1):
            _refuse_dead(processes)


def _refuse_dead(processes: list[Any], error: Exception | None = None) -> None:
    for at, process in enumerate(processes, start=1):
        if process.exitcode:
            raise CompalignError(
                f"training process {at} of {len(processes) + 1}",
                expected="it to train to the end",
                found=f"exit code {process.exitcode}",
                remedy="Its own error is above. A script must train below `if __name__ == '__main__':`. Otherwise give "
                "each process more memory, or train with fewer.",
            ) from error


def _worker(
    index: int,
    ready: Any,
    port: int,
    config: RewardConfig,
    device: str,
    follow: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    import accelerate  # noqa: F401 - before it says that it is ready

    ready.release()
    logging.getLogger("compalign_dagster").setLevel(logging.ERROR)  # rank 0 says the same
    os.environ.update(_place(index + 1, config.processes, port))
    follow(_accelerator(config, device), *arguments)
    torch.distributed.destroy_process_group()


def _place(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torch.distributed and accelerate read of the environment; everything stays on loopback."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0"),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
