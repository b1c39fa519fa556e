"""The training loop shared by the reward model and the downstream evaluation.

What belongs here: seeding, the optimiser, the schedule, one step after another. What does not:
batches, losses, validation; callers bring those as functions of the step.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compalign_dagster.errors import CompalignError

_MAX_GRADIENT_NORM = 1.0


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. On a CPU the same seed then trains the same bytes."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use this many threads meanwhile; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear up over `warmup * steps`, then a cosine down to 0."""
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def fit(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Minimise `loss_of(step)` for `steps` steps with AdamW; return the loss of every step.

    `parameters` are tensors or torch optimiser groups (a group's own `lr` is a peak too). Gradients
    are clipped to norm 1. `on_step(step, loss)` follows each update. Raises `CompalignError` as soon
    as a loss is not finite.
    """
    given: list[Any] = list(parameters)
    optimiser = torch.optim.AdamW(given, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_share(step, steps, warmup))
    trained = [value for group in optimiser.param_groups for value in group["params"]]
    curve: list[float] = []
    for step in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise CompalignError(
                f"training step {step}",
                expected="a finite loss",
                found=str(value),
                remedy="Lower the learning rate; look for broken images if it happens at step 0.",
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, _MAX_GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        curve.append(value)
        on_step(step, value)
    return curve
