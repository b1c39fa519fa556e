"""The training loop shared by the reward model and the downstream evaluation.

What belongs here: seeding, the order of batches, the optimiser, the schedule, one update after another, alone or
with an `accelerate.Accelerator` (mixed precision, several processes). What does not: losses, validation,
checkpoints on disk; callers bring those as functions.

Everything random is a function of a seed and a step, so that a training that stopped goes on as if it had not.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compalign_dagster.errors import CompalignError

if TYPE_CHECKING:
    from accelerate import Accelerator

_MAX_GRADIENT_NORM = 1.0
_SCALER = "scaler."


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch. On a CPU the same seed then trains the same bytes."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def reseed(*numbers: int) -> None:
    """Seed torch by several numbers, such as a seed and a step: dropout then depends on these and nothing before."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use this many threads meanwhile; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Order:
    """Endless batches of indices below `count`, each a function of its number: every index once an epoch.

    A batch across the end of an epoch takes from both; an index that both gave it is in it once.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self._count, self._size, self._seed = count, min(size, count), seed
        self._epochs: dict[int, list[int]] = {}

    def at(self, number: int) -> list[int]:
        """Batch `number`, from 0."""
        places = range(number * self._size, (number + 1) * self._size)
        return list(dict.fromkeys(self._epoch(place // self._count)[place % self._count] for place in places))

    def _epoch(self, number: int) -> list[int]:
        if number not in self._epochs:
            self._epochs.pop(number - 2, None)
            generator = np.random.default_rng([self._seed, number])
            self._epochs[number] = generator.permutation(self._count).tolist()
        return self._epochs[number]


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear up over `warmup * steps`, then a cosine down to 0."""
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Fitting:
    """Minimises a loss with AdamW, a warm-up and a cosine; gradients are clipped to norm 1.

    An update is the mean over `accumulation` micro-batches, numbered through the whole training. With an accelerator
    of P processes micro-batch m is computed by process m % P, so that the processes change the speed and nothing
    else. Its `gradient_accumulation_steps` must be `accumulation / P`, and the loss must run through `module`, as
    `accelerator.prepare` returned it.

    Args:
        parameters: tensors or torch optimiser groups; a group's own `lr` is a peak too.
        steps: updates of the whole training.
        lr: peak learning rate.
        weight_decay: AdamW's.
        warmup: share of the steps over which the rate rises.
        accumulation: micro-batches of an update.
        accelerator: without one the loss is computed here, in float32; trainings in several threads need that,
            because an accelerator's state belongs to the process.
        module: what the accelerator prepared.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        steps: int,
        lr: float,
        weight_decay: float = 0.0,
        warmup: float = 0.0,
        accumulation: int = 1,
        accelerator: "Accelerator | None" = None,
        module: nn.Module | None = None,
    ) -> None:
        given: list[Any] = list(parameters)
        optimiser: Any = torch.optim.AdamW(given, lr=lr, weight_decay=weight_decay)
        self.step, self.curve = 0, list[float]()
        self._steps, self._warmup, self._accumulation = steps, warmup, accumulation
        self._peaks = [group["lr"] for group in optimiser.param_groups]
        self._trained = [value for group in optimiser.param_groups for value in group["params"]]
        self._accelerator, self._module = accelerator, module
        self._optimiser = accelerator.prepare(optimiser) if accelerator else optimiser

    def run(
        self, loss_of: Callable[[int], Tensor], on_step: Callable[[int, float], Any] = lambda step, loss: None
    ) -> list[float]:
        """Go on to the last step; return the loss of every step from the first on.

        `loss_of(number)` is the loss of a micro-batch. `on_step(step, loss)` follows each update; where it is true in
        any process, all stop. Raises `CompalignError` as soon as a loss is not finite.
        """
        going = True
        while going and self.step < self._steps:
            share = learning_rate_share(self.step, self._steps, self._warmup)
            for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
                group["lr"] = peak * share
            loss = self._update(loss_of)
            self.curve.append(loss)
            self.step += 1
            stop = bool(on_step(self.step - 1, loss))
            going = not any(averaged([float(stop)], self._accelerator))
        return self.curve

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors, and the scale of fp16 losses, by name: with `step` and `curve` all there is."""
        found = {
            f"{at}.{name}": value.detach()
            for at, values in self._optimiser.state_dict()["state"].items()
            for name, value in values.items()
        }
        scaler = self._accelerator.scaler if self._accelerator else None
        scale = scaler.state_dict() if scaler else {}
        return found | {f"{_SCALER}{name}": torch.tensor(value, dtype=torch.float64) for name, value in scale.items()}

    def resume(self, state: Mapping[str, Tensor], *, step: int, curve: Iterable[float]) -> None:
        """Go on behind `step` updates, with what `state` gave then."""
        values: dict[int, dict[str, Tensor]] = {at: {} for at in range(len(self._trained))}
        for name, value in state.items():
            if not name.startswith(_SCALER):
                at, _, key = name.partition(".")
                values[int(at)][key] = value
        self._optimiser.load_state_dict({"state": values, "param_groups": self._optimiser.state_dict()["param_groups"]})
        scaler = self._accelerator.scaler if self._accelerator else None
        if scaler:
            kinds = {name: type(value) for name, value in scaler.state_dict().items()}
            scaler.load_state_dict({name: kind(state[_SCALER + name].item()) for name, kind in kinds.items()})
        self.step, self.curve = step, list(curve)

    def _update(self, loss_of: Callable[[int], Tensor]) -> float:
        """One update; the mean loss of its micro-batches over all processes."""
        self._optimiser.zero_grad(set_to_none=True)
        first, accelerator = self.step * self._accumulation, self._accelerator
        rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        total = 0.0
        for number in range(first + rank, first + self._accumulation, processes):
            if accelerator:
                with accelerator.accumulate(self._module):
                    loss = loss_of(number)
                    accelerator.backward(loss.to(accelerator.device))  # where the scale of fp16 is
            else:
                loss = loss_of(number)
                (loss / self._accumulation).backward()
            total += float(loss.detach()) * processes / self._accumulation
        (value,) = averaged([total], accelerator)
        if not math.isfinite(value):
            raise CompalignError(
                f"training step {self.step}",
                expected="a finite loss",
                found=str(value),
                remedy="Lower the learning rate; look for broken images if it happens at step 0.",
            )
        if accelerator:
            accelerator.clip_grad_norm_(self._trained, _MAX_GRADIENT_NORM)
        else:
            torch.nn.utils.clip_grad_norm_(self._trained, _MAX_GRADIENT_NORM)
        self._optimiser.step()
        return value


def averaged(values: Iterable[float], accelerator: "Accelerator | None") -> list[float]:
    """The mean of each value over the accelerator's processes, all of which must ask."""
    found = list(values)
    if accelerator is None or accelerator.num_processes == 1 or not found:
        return found
    return accelerator.reduce(torch.tensor(found, dtype=torch.float64, device=accelerator.device), "mean").tolist()


def fit(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    loss_of: Callable[[int], Tensor],
    *,
    on_step: Callable[[int, float], Any] = lambda step, loss: None,
    **options: Any,
) -> list[float]:
    """`Fitting(parameters, **options)` run from the first step to the last; the loss of every step."""
    return Fitting(parameters, **options).run(loss_of, on_step)
