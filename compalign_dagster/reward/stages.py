"""Running the stages of a training one after another, from where a checkpoint left them.

What belongs here: which stage is due, what a checkpoint keeps of it, when one is written. What does not: what a
stage learns (`pretraining.py`, `objective.py`), the file (`checkpoints.py`), the loop (`fitting.py`).
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from compalign_dagster.fitting import Fitting
from compalign_dagster.reward.checkpoints import Checkpoints
from compalign_dagster.reward.model import Progress, RewardModel

if TYPE_CHECKING:
    from accelerate import Accelerator

PRETRAIN, TRAIN = "pretrain", "train"
_ORDER = (PRETRAIN, TRAIN)

Kept = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and JSON values that a stage adds to its checkpoints."""


class Stages:
    """The stages of one training of `model`, whose weights are those of the newest checkpoint from the start on.

    `facts` are the JSON values of that checkpoint; what a stage adds to them is in every later checkpoint.
    """

    def __init__(
        self, model: RewardModel, accelerator: "Accelerator", progress: Progress, kept: Checkpoints | None
    ) -> None:
        self.model, self.accelerator, self.progress, self._kept = model, accelerator, progress, kept
        self._found = kept.newest() if kept else None
        self.facts: dict[str, Any] = dict(self._found.facts) if self._found else {}
        if self._found:
            model.load_state_dict(self._found.part("model"))

    def due(self, stage: str) -> bool:
        """Whether a stage has not ended before the checkpoint."""
        return self._found is None or _ORDER.index(self._found.facts["stage"]) <= _ORDER.index(stage)

    def begun(self, stage: str) -> bool:
        """Whether the checkpoint was written in this stage."""
        return self._found is not None and self._found.facts["stage"] == stage

    def tensors(self, part: str) -> dict[str, Tensor]:
        """A part of the checkpoint's tensors; empty without one."""
        return self._found.part(part) if self._found else {}

    def run(
        self,
        stage: str,
        loss: nn.Module,
        parameters: Iterable[Any],
        *,
        steps: int,
        lr: float,
        on_step: Callable[[int, float], bool] = lambda step, loss: False,
        keep: Callable[[], Kept] = lambda: ({}, {}),
    ) -> list[float]:
        """Train until `steps` or until `on_step` is true; the loss of every step from the first on.

        `loss(number)` is the loss of a micro-batch. `keep()` is asked at every checkpoint, which follows `on_step`.
        """
        config, accelerator = self.model.config, self.accelerator
        prepared = accelerator.prepare(loss)
        fitting = Fitting(
            parameters,
            steps=steps,
            lr=lr,
            weight_decay=config.weight_decay,
            warmup=config.warmup,
            accumulation=config.accumulation,
            accelerator=accelerator,
            module=prepared,
        )
        if self.begun(stage):
            fitting.resume(self.tensors("optimiser"), step=self.facts["step"], curve=self.facts["curve"])
            self._found = None  # three times the model's memory, of no further use

        def after(step: int, value: float) -> bool:
            done = step + 1
            self.progress(done, steps, f"{stage}ing steps")
            stop = on_step(step, value)
            if self._kept and accelerator.is_main_process and (stop or done == steps or due(done)):
                self._save(self._kept, stage, fitting, keep)
            return stop

        def due(done: int) -> bool:
            return done % config.checkpoint_every == 0

        self.model.train()
        try:
            return fitting.run(prepared, after)
        finally:
            accelerator.free_memory()

    def _save(self, kept: Checkpoints, stage: str, fitting: Fitting, keep: Callable[[], Kept]) -> None:
        tensors, facts = keep()
        parts = {"model": self.model.state_dict(), "optimiser": fitting.state()}
        named = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        progress = {"stage": stage, "step": fitting.step, "curve": fitting.curve}
        kept.save(named | tensors, {**self.facts, **facts, **progress})
