"""What the reward learns: order within an image, a common scale across images, and what people rated.

A pairwise loss among one image's captions fixes rewards only up to an offset for each image, and a
global cut would then be meaningless. The anchors tie the images together: a caption of another
image must lie below an image's own best captions wherever those are, and below zero. Ratings say
where zero is: a caption rated in the middle. Within an image, entries weigh by their labeler; images
weigh alike, or by their most trusted labeler. What does not belong here: the network, and which rows
meet (`batches.py`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LN2 = 0.6931471805599453


@dataclass(frozen=True)
class PairBatch:
    """A batch of judged images flattened for one forward pass.

    `captions[n]` is paired with image `image_index[n]`. The first rows are each image's own captions;
    then come other images' best captions (`mismatched`), then own best captions with one word changed
    (`near`, made from the rows `origin`).
    """

    captions: list[str]
    image_index: Tensor  # int64 [N]
    better: Tensor  # int64 [P], rows
    worse: Tensor  # int64 [P], rows
    weight: Tensor  # float32 [P], of the labeler
    top: Tensor  # int64 [K], rows of best own captions that nobody rated below the middle
    mismatched: Tensor  # int64 [M], rows
    near: Tensor  # int64 [H], rows
    origin: Tensor  # int64 [H], rows
    ratings: Tensor  # float32 [N, 4], 0 to 1; NaN where nobody rated
    trust: Tensor  # float32 [N], greatest weight of a labeler who rated the row


def shares(weight: Tensor, image: Tensor) -> Tensor:
    """Weights [N] of entries of images `image` (int64 [N]) as shares of a mean over images. Sum 1, or 0.

    An image counts as much as its greatest weight, so that one judged only by a labeler of small
    weight counts little; its entries share that by their weights.
    """
    if not len(weight):
        return weight
    images = int(image.max()) + 1
    summed = torch.zeros(images).index_add(0, image, weight)
    greatest = torch.zeros(images).scatter_reduce(0, image, weight, "amax")
    of_image = greatest / (summed.clamp_min(1e-12) * greatest.sum().clamp_min(1e-12))
    return weight * of_image[image]


def preference_loss(rewards: Tensor, batch: PairBatch) -> Tensor:
    """Bradley-Terry: -log sigmoid(r_better - r_worse), averaged within images, then over images. Scalar."""
    if not len(batch.better):
        return rewards.sum() * 0
    share = shares(batch.weight, batch.image_index[batch.better])
    return (F.softplus(rewards[batch.worse] - rewards[batch.better]) * share).sum()


def anchor_loss(rewards: Tensor, batch: PairBatch) -> Tensor:
    """Every best caption above every mismatch, across images; best above zero, mismatches below. Scalar."""
    if not len(batch.top) or not len(batch.mismatched):
        return rewards.sum() * 0
    best, wrong = rewards[batch.top], rewards[batch.mismatched]
    pairwise = F.softplus(wrong[None, :] - best[:, None]).mean()
    pointwise = (F.softplus(-best).mean() + F.softplus(wrong).mean()) / 2
    return (pairwise + pointwise) / 2


def hard_loss(rewards: Tensor, batch: PairBatch) -> Tensor:
    """Near misses below what they were made from; each image's best-scoring mismatch below its best. Scalar.

    A near miss is only compared with its origin: it may still fit a little, so zero says nothing of it.
    """
    near = F.softplus(rewards[batch.near] - rewards[batch.origin])
    size = int(batch.image_index.max()) + 1
    image = batch.image_index
    lowest = torch.full((size,), -torch.inf)
    hardest = lowest.scatter_reduce(0, image[batch.mismatched], rewards[batch.mismatched], "amax")
    wrong = hardest[image[batch.top]]
    met = torch.isfinite(wrong)
    mined = F.softplus(wrong[met] - rewards[batch.top][met])
    parts = [part.mean() for part in (near, mined) if len(part)]
    return torch.stack(parts).mean() if parts else rewards.sum() * 0


def rating_loss(rewards: Tensor, batch: PairBatch) -> Tensor:
    """Cross-entropy of sigmoid(reward) and the mean of a caption's ratings, over rated captions. Scalar."""
    rows = torch.isfinite(batch.ratings).any(1)
    return _pointwise(rewards, batch.ratings.nanmean(1), rows, batch)


def criteria_loss(criteria: Tensor, batch: PairBatch) -> Tensor:
    """Scores [N, 4] against ratings, criterion by criterion: captions of an image in order, and each one's level.

    The mean over the criteria that have ratings here; the others get no gradient. Scalar.
    """
    losses = []
    for at in range(criteria.shape[1]):
        rows = torch.isfinite(batch.ratings[:, at])
        if rows.any():
            score, rating = criteria[:, at], batch.ratings[:, at]
            losses.append((_pointwise(score, rating, rows, batch) + _pairwise(score, rating, rows, batch)) / 2)
    return torch.stack(losses).mean() if losses else criteria.sum() * 0


def _pointwise(scores: Tensor, target: Tensor, rows: Tensor, batch: PairBatch) -> Tensor:
    share = shares(batch.trust[rows], batch.image_index[rows])
    return (F.binary_cross_entropy_with_logits(scores[rows], target[rows], reduction="none") * share).sum()


def _pairwise(scores: Tensor, rating: Tensor, rows: Tensor, batch: PairBatch) -> Tensor:
    """Bradley-Terry over pairs of captions of one image whose ratings differ."""
    at = rows.nonzero()[:, 0]
    together = batch.image_index[at][:, None] == batch.image_index[at][None, :]
    better, worse = (together & (rating[at][:, None] > rating[at][None, :])).nonzero(as_tuple=True)
    better, worse = at[better], at[worse]
    share = shares(torch.minimum(batch.trust[better], batch.trust[worse]), batch.image_index[better])
    return (F.softplus(scores[worse] - scores[better]) * share).sum()


def stuck(loss: float) -> bool:
    """Whether a preference loss says that the model tells no caption from another."""
    return abs(loss - LN2) < 1e-4


def spread(rewards: Tensor) -> float:
    """Standard deviation of rewards, population."""
    return float(torch.std(rewards.detach().float(), correction=0))
