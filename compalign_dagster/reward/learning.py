"""Stage 1: the reward, from human judgements, with validations that decide which weights are kept.

What belongs here: what a step sees, what is watched, what a checkpoint keeps of it. What does not: the terms of the
loss (`objective.py`), what the validations decide (`watch.py`), the loop (`fitting.py`).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compalign_dagster.fitting import Order, averaged, reseed
from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.objective import Objective
from compalign_dagster.reward.pretraining import JointLoss
from compalign_dagster.reward.stages import TRAIN, Kept, Stages
from compalign_dagster.reward.watch import Watch

logger = logging.getLogger(__name__)

_DROPOUT = 0x51  # so that numbers drawn for stage 1 differ from those of stage 0


class JudgementLoss(nn.Module):
    """The loss of micro-batch `number` of stage 1: a function of the seed and that number.

    `terms` sums up its parts, each a mean over a step's micro-batches of this process, until `taken`.
    """

    def __init__(self, objective: Objective, useful: Sequence[JudgedImage], joint: JointLoss | None) -> None:
        super().__init__()
        self.objective, self.useful = objective, useful
        self.config = objective.model.config
        self.joint = joint if self.config.joint_weight else None
        self.order = Order(len(useful), self.config.batch_images, self.config.seed)
        self.terms: dict[str, float] = {}

    def forward(self, number: int) -> Tensor:
        """A scalar."""
        reseed(self.config.seed, _DROPOUT, number)
        loss = self.objective([self.useful[at] for at in self.order.at(number)])
        for name, value in self.objective.terms.items():
            share = self.config.processes / self.config.accumulation
            self.terms[name] = self.terms.get(name, 0.0) + share * float(value)
        step, part = divmod(number, self.config.accumulation)
        if self.joint and step % self.config.joint_every == 0:
            met = self.config.pretrain_steps + step // self.config.joint_every
            loss = loss + self.config.joint_weight * self.joint(met * self.config.accumulation + part).to(loss.device)
        return loss

    def taken(self) -> dict[str, float]:
        """The terms since the last time."""
        found, self.terms = self.terms, {}
        return found


def learn(
    stages: Stages, objective: Objective, splits: Mapping[str, list[JudgedImage]], joint: JointLoss | None
) -> tuple[Watch, dict[str, Any]]:
    """Train to the end, or until patience runs out; leave the weights of the best validation in the model.

    Returns the validations and the curves. Only the first process validates.
    """
    model, config = stages.model, stages.model.config
    validation = splits["validation"] if stages.accelerator.is_main_process else []
    loss = JudgementLoss(objective, objective.useful(splits["train"]), joint)
    model.trained_criteria.copy_(objective.trained_criteria(splits["train"]))
    watch = Watch(config.patience)
    curves: dict[str, Any] = {"train": [], "terms": {}}
    if stages.begun(TRAIN):
        watch = Watch(config.patience, stages.facts["validations"], stages.tensors("best"))
        curves = {"train": stages.facts["curve"], "terms": stages.facts["terms"]}
    else:
        objective.check_spread(loss.useful[: config.batch_images])

    def on_step(step: int, value: float) -> bool:
        done = step + 1
        terms = loss.taken()
        for name, term in zip(terms, averaged(terms.values(), stages.accelerator), strict=True):
            curves["terms"].setdefault(name, []).append(term)
        if not validation or (done % config.validate_every and done != config.steps):
            return False
        entry = {"step": done, **objective.validate(validation).as_dict()}
        model.train()
        watch.see(entry, model.state_dict())
        logger.info("training step %d of %d: %s", done, config.steps, _told(entry))
        if watch.stopped:
            logger.info("stopped: no better preference accuracy in %d validations", config.patience)
        return watch.stopped

    def keep() -> Kept:
        best = {f"best/{name}": value for name, value in watch.weights.items()}
        return best, {"validations": watch.validations, "terms": curves["terms"]}

    if not watch.stopped:
        groups = model.parameter_groups(config.frozen_share)
        curves["train"] = stages.run(TRAIN, loss, groups, steps=config.steps, lr=config.lr, on_step=on_step, keep=keep)
    if watch.weights:
        model.load_state_dict(watch.weights)
    if watch.at_ln2:
        logger.warning("validation loss stayed at ln 2: the model does not tell captions apart")
    return watch, curves | {"validation": watch.validations, "best": watch.best, "stuck_at_ln2": watch.at_ln2}


def _told(entry: Mapping[str, Any]) -> str:
    if entry["accuracy"] is None:
        return f"validation loss {entry['total']:.4f}, no comparisons"
    return f"validation agrees with people in {entry['accuracy']:.1%} of comparisons, loss {entry['preference']:.4f}"
