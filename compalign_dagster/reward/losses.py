"""What the reward learns: order within an image, and a common scale across images.

A pairwise loss among one image's captions fixes rewards only up to an offset for each image, and a
global cut would then be meaningless. The anchors tie the images together: a caption of another
image must lie below an image's own best captions wherever those are, and below zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LN2 = 0.6931471805599453


@dataclass(frozen=True)
class PairBatch:
    """A batch of judged images flattened for one forward pass.

    `captions[n]` is paired with image `image_index[n]`. The first rows are each image's own captions,
    the rest, flagged in `mismatched`, are other images' best captions.
    """

    captions: list[str]
    image_index: Tensor  # int64 [N]
    better: Tensor  # int64 [P], rows
    worse: Tensor  # int64 [P], rows
    weight: Tensor  # float32 [P]; an image's comparisons sum to 1 over all images of the batch
    top: Tensor  # int64 [K], rows of best own captions
    mismatched: Tensor  # int64 [M], rows


def preference_loss(rewards: Tensor, batch: PairBatch) -> Tensor:
    """Bradley-Terry: -log sigmoid(r_better - r_worse), averaged within images, then over images. Scalar."""
    if not len(batch.better):
        return rewards.sum() * 0
    return (F.softplus(rewards[batch.worse] - rewards[batch.better]) * batch.weight).sum()


def anchor_loss(rewards: Tensor, batch: PairBatch) -> Tensor:
    """Every best caption above every mismatch, across images; best above zero, mismatches below. Scalar."""
    if not len(batch.top) or not len(batch.mismatched):
        return rewards.sum() * 0
    best, wrong = rewards[batch.top], rewards[batch.mismatched]
    pairwise = F.softplus(wrong[None, :] - best[:, None]).mean()
    pointwise = (F.softplus(-best).mean() + F.softplus(wrong).mean()) / 2
    return (pairwise + pointwise) / 2


def stuck(loss: float) -> bool:
    """Whether a preference loss says that the model tells no caption from another."""
    return abs(loss - LN2) < 1e-4


def spread(rewards: Tensor) -> float:
    """Standard deviation of rewards, population."""
    return float(torch.std(rewards.detach().float(), correction=0))
