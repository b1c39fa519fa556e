"""How sure a reward is: a Gaussian over the weights of its last layer (Laplace approximation).

The reward is linear in what its last layer reads, so that the curvature of the loss is what every comparison, anchor
and rating says of the weights. A prior around the weights from before any judgement says how far they may lie from
there; its precision is the one with which the last layer, learned again, predicts the validation images best. What does
not belong here: what to label next (`acquisition.py`), the terms of the loss.

Sources: MacKay, Neural Computation 4 (1992), also for `preference`; Daxberger et al. 2021 (arXiv 2106.14806) for the
last layer alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from compalign_dagster.fitting import Order
from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.losses import PairBatch

if TYPE_CHECKING:
    from compalign_dagster.reward.objective import Objective

PRECISIONS = tuple(10.0 ** (power / 2) for power in range(-4, 11))  # 0.01 to 100,000

MOST_IMAGES = 4096  # of the training split that are looked at once more; they stand for all of it

_LEAST_DISPERSION = 0.01  # few groups may scatter little by chance

Group = tuple[int, Tensor, Tensor, PairBatch]
"""Images together: how many, features [N, K] and rewards [N] of their rows, and the batch."""


class Posterior(nn.Module):
    """Covariance of the last layer's K weights as `factor @ factor.T`, [K, K]; NaN until it is fitted."""

    factor: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("factor", torch.full((features, features), torch.nan))

    def forward(self, features: Tensor) -> Tensor:
        """Standard deviation of the reward of each row [N, K], or of a difference of two rows; float32 [N]."""
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() @ self.factor.float()).norm(dim=1)


@dataclass(frozen=True)
class Information:
    """What judgements say of the weights: `amounts` [K], at least 0, along the columns of `axes` [K, K]; float64.

    `slope` [K] is the gradient of the loss at the weights, along the same columns. The loss counts an image as one
    observation, though people compared many of its captions: `dispersion` is how much gradients really scatter, as
    a share of what the curvature says of single observations.
    """

    amounts: Tensor
    axes: Tensor
    slope: Tensor
    dispersion: float = 1.0

    def standing_for(self, share: float) -> Self:
        """What so many times the images would say, if they are like these."""
        return replace(self, amounts=share * self.amounts, slope=share * self.slope)

    def factor(self, precision: float) -> Tensor:
        """Of the covariance that judgements and a prior of this precision leave, [K, K]."""
        return self.axes * (self.dispersion / (self.amounts + precision)) ** 0.5

    def sampling_factor(self, precision: float) -> Tensor:
        """Of the covariance of the fit itself had other images been judged, [K, K]: never larger than `factor`."""
        return self.axes * ((self.dispersion * self.amounts) ** 0.5 / (self.amounts + precision))

    def refitted(self, precision: float, moved: Tensor) -> Tensor:
        """How the weights would change if learned with this prior, to second order, [K]; `moved` from its centre."""
        slope = self.slope + precision * (self.axes.T @ moved.double())
        return -self.axes @ (slope / (self.amounts + precision))


@dataclass(frozen=True)
class Fitted:
    """A posterior: what the judgements say, and the precision of the prior."""

    known: Information
    precision: float

    @property
    def factor(self) -> Tensor:
        """Of the covariance, the one that is lower triangular, float64 [K, K]."""
        root = self.known.factor(self.precision)
        return torch.linalg.cholesky(root @ root.T)

    @property
    def effective_weights(self) -> float:
        """How many of the K weights the judgements decide rather than the prior."""
        return float((self.known.amounts / (self.known.amounts + self.precision)).sum())


def preference(difference: Tensor, std: Tensor) -> Tensor:
    """P(the first of two captions is preferred), [N], of a difference of rewards that is so unsure.

    The mean of sigmoid over a Gaussian, to MacKay's approximation: without doubt it is sigmoid(difference), with much
    doubt one half.
    """
    return torch.sigmoid(difference / (1 + math.pi / 8 * std**2).sqrt())


def fit_posterior(
    objective: "Objective", train: Sequence[JudgedImage], validation: Sequence[JudgedImage], start: Tensor
) -> Fitted | None:
    """The posterior at the model's weights, or None where nothing was held out to fit the prior's precision on.

    `start` [K] are the last layer's weights before stage 1. At most MOST_IMAGES of `train` are looked at, drawn by
    the seed of the training. Leaves the model in evaluation mode.
    """
    held_out = list(objective.last_layer(validation))
    if not any(len(batch.better) for *_, batch in held_out):
        return None
    drawn = Order(len(train), MOST_IMAGES, objective.model.config.seed).at(0)
    known = information(objective, objective.last_layer([train[at] for at in sorted(drawn)]))
    known = known.standing_for(len(train) / len(drawn))
    moved = objective.model.last_layer().detach().cpu() - start
    precision = min(PRECISIONS, key=lambda at: _loss(objective, held_out, known.refitted(at, moved).float()))
    return Fitted(known, precision)


def information(objective: "Objective", groups: Iterable[Group]) -> Information:
    """First and second derivatives of the loss by the last layer's weights, summed over images.

    The dispersion is taken over groups, whose images are independent, and is 1 where there is a single group. Raises
    `ValueError` for no groups.
    """
    slope, curvature = [], []
    for count, features, rewards, batch in groups:
        loss = partial(_moved, objective, features, rewards, batch)
        here = torch.zeros(features.shape[1])
        slope.append(count * torch.autograd.functional.jacobian(loss, here).double())
        curvature.append(count * torch.autograd.functional.hessian(loss, here).double())
    if not curvature:
        raise ValueError("no images to be informed by")
    total = torch.stack(curvature).sum(0)
    amounts, axes = torch.linalg.eigh((total + total.T) / 2)
    slopes = torch.stack(slope)
    scatter = len(slopes) * float(slopes.var(0).sum()) if len(slopes) > 1 else float(total.trace())
    dispersion = max(scatter / max(float(total.trace()), 1e-12), _LEAST_DISPERSION)
    return Information(amounts.clamp(min=0), axes, axes.T @ slopes.sum(0), dispersion)


def _loss(objective: "Objective", groups: Sequence[Group], change: Tensor) -> float:
    """The loss of these images with the last layer's weights changed by so much; infinite where it overflows."""
    with torch.no_grad():
        parts = [
            count * float(_moved(objective, features, rewards, batch, change))
            for count, features, rewards, batch in groups
        ]
    found = math.fsum(parts)
    return found if math.isfinite(found) else math.inf


def _moved(objective: "Objective", features: Tensor, rewards: Tensor, batch: PairBatch, change: Tensor) -> Tensor:
    return objective.of_rewards(rewards + features @ change, batch)
