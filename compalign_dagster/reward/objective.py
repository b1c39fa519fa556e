"""The loss of stage 1: what a group of judged images costs, term by term, and the same on held-out images.

What belongs here: which terms there are and what they weigh. What does not: the terms themselves
(`losses.py`), which images meet (`batches.py`), optimisers and schedules (`training.py`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compalign_dagster.errors import CompalignError
from compalign_dagster.reward.batches import flatten
from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.loading import ImageLoader, states_of
from compalign_dagster.reward.losses import (
    PairBatch,
    anchor_loss,
    criteria_loss,
    hard_loss,
    preference_loss,
    rating_loss,
    spread,
)
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.reward.nearmiss import Substitutes
from compalign_dagster.reward.uncertainty import Group

LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Validation:
    """Terms of the loss on held-out images, each a mean over images; NaN where there was nothing to measure."""

    preference: float
    anchor: float  # with hard negatives
    rating: float
    criteria: float
    accuracy: float  # share of untied comparisons with the right order; equal rewards are wrong
    total: float  # the weighted sum that training minimises

    def as_dict(self) -> dict[str, float | None]:
        """JSON values; None for NaN."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


class Objective(nn.Module):
    """A model, where its images come from, and the weighted terms of `model.config`.

    A term of weight 0 is not computed and adds no row to the forward pass; only the comparisons are always
    measured, for the validations. `train` are the images of the training split: their captions say what a
    near miss is.
    """

    def __init__(self, model: RewardModel, images: ImageLoader, train: Sequence[JudgedImage]) -> None:
        super().__init__()
        self.model, self.images = model, images
        config = model.config
        hard = config.anchor_weight * config.hard_negatives
        self.weights = {
            "preference": config.preference_weight,
            "anchor": config.anchor_weight,
            "rating": config.rating_weight,
            "criteria": config.criteria_weight,
        }
        self.terms: dict[str, Tensor] = {}  # of the last forward, without weights
        texts = (text for image in train for text in image.captions)
        self._substitutes = Substitutes(texts, shuffled=config.shuffled_captions) if hard else None

    def useful(self, images: Sequence[JudgedImage]) -> list[JudgedImage]:
        """The images that teach anything under these weights: those with comparisons, or with ratings in use."""
        ratings = self.weights["rating"] or self.weights["criteria"]
        return [image for image in images if image.better or (ratings and image.rated)]

    def trained_criteria(self, train: Sequence[JudgedImage]) -> Tensor:
        """Which criterion heads these images train, bool [4]; for `RewardModel.trained_criteria`."""
        if not self.weights["criteria"]:
            return torch.zeros_like(self.model.trained_criteria)
        rows = [ratings for image in train for ratings in image.ratings]
        return torch.isfinite(torch.tensor(rows).reshape(-1, len(self.model.trained_criteria))).any(0)

    def forward(self, group: Sequence[JudgedImage]) -> Tensor:
        """The scalar loss of a micro-batch."""
        terms, _, _ = self._terms(group)
        self.terms = {name: value.detach() for name, value in terms.items()}
        return self._weighted(terms)

    def of_rewards(self, rewards: Tensor, batch: PairBatch) -> Tensor:
        """The part of that loss that depends on the overall rewards [N] of the batch. Scalar, differentiable twice."""
        return self._weighted(self._reward_terms(rewards, batch))

    def last_layer(self, images: Sequence[JudgedImage]) -> Iterator[Group]:
        """Groups of images in fixed order: how many, features [N, K] and rewards [N] of the rows, and the batch.

        On the CPU, float32, without gradients. Leaves the model in evaluation mode.
        """
        self.model.eval()
        size = max(2, self.model.config.batch_images)
        for start in range(0, len(images), size):
            group = images[start : start + size]
            batch = self._batch(group)
            with torch.no_grad():
                states = states_of(self.model, self.images, [image.place for image in group])
                features = self.model.features(states, batch.captions, batch.image_index).float()
                rewards = features @ self.model.last_layer()
            yield len(group), features.cpu(), rewards.cpu(), batch

    def validate(self, split: Sequence[JudgedImage]) -> Validation:
        """The terms over a split, in groups of fixed order. Leaves the model in evaluation mode."""
        self.model.eval()
        size = max(2, self.model.config.batch_images)
        sums, counts = dict.fromkeys(self.weights, 0.0), dict.fromkeys(self.weights, 0)
        right = comparisons = 0
        with torch.inference_mode():
            for start in range(0, len(split), size):
                group = split[start : start + size]
                terms, rewards, batch = self._terms(group)
                right += int((rewards[batch.better] > rewards[batch.worse]).sum())
                comparisons += len(batch.better)
                for name, value in terms.items():
                    images = _images(group, batch, name)
                    sums[name] += float(value) * images
                    counts[name] += images
        means = {name: sums[name] / counts[name] if counts[name] else math.nan for name in sums}
        total = sum(self.weights[name] * value for name, value in means.items() if not math.isnan(value))
        if math.isinf(total):
            raise CompalignError(
                "validation of a reward model",
                expected="a finite loss",
                found=str(total),
                remedy="Lower the learning rate or train in fp32.",
            )
        return Validation(**means, accuracy=right / comparisons if comparisons else math.nan, total=total)

    def check_spread(self, group: Sequence[JudgedImage]) -> None:
        """Raise `CompalignError` where a head to be trained scores all rows alike: it would never leave ln 2."""
        self.model.eval()
        with torch.inference_mode():
            heads = self._heads(group, flatten(group, self.model.config.mismatches))
        trained = [True, *self.trained_criteria(group).tolist()]
        found = min(spread(column) for column, wanted in zip(heads.T, trained, strict=True) if wanted)
        if not found > LEAST_SPREAD:
            raise CompalignError(
                "rewards before training",
                expected=f"a standard deviation above {LEAST_SPREAD}",
                found=f"{found:.2g}",
                remedy="Check the head's initialisation, the pretrained weights and the images.",
            )

    def _terms(self, group: Sequence[JudgedImage]) -> tuple[dict[str, Tensor], Tensor, PairBatch]:
        """The terms in use, and the overall reward of every row of the batch."""
        batch = self._batch(group)
        heads = self._heads(group, batch)
        rewards = heads[:, 0]
        terms = self._reward_terms(rewards, batch)
        if self.weights["criteria"]:
            terms["criteria"] = criteria_loss(heads[:, 1:], batch)
        return terms, rewards, batch

    def _reward_terms(self, rewards: Tensor, batch: PairBatch) -> dict[str, Tensor]:
        """The terms in use that read the overall reward [N], which is all but the criteria."""
        terms = {"preference": preference_loss(rewards, batch)}
        if self.weights["anchor"]:
            terms["anchor"] = anchor_loss(rewards, batch)
            hard = self.model.config.hard_negatives
            if hard:
                terms["anchor"] = terms["anchor"] + hard * hard_loss(rewards, batch)
        if self.weights["rating"]:
            terms["rating"] = rating_loss(rewards, batch)
        return terms

    def _weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        weighted = [self.weights[name] * value for name, value in terms.items() if self.weights[name]]
        return sum(weighted, start=torch.zeros(()))

    def _batch(self, group: Sequence[JudgedImage]) -> PairBatch:
        mismatches = self.model.config.mismatches if self.weights["anchor"] else 0
        return flatten(group, mismatches, self._near_miss())

    def _heads(self, group: Sequence[JudgedImage], batch: PairBatch) -> Tensor:
        """Scores of all rows on the CPU, float32 [N, 5]; each image is encoded once."""
        states = states_of(self.model, self.images, [image.place for image in group])
        return self.model.heads(states, batch.captions, batch.image_index).float().cpu()

    def _near_miss(self) -> Callable[[str], str | None] | None:
        """What makes near misses: others in every training step, by torch's generator; the same in validation."""
        substitutes = self._substitutes
        if substitutes is None:
            return None
        rng = np.random.default_rng(int(torch.randint(2**62, ())) if self.model.training else 0)
        return lambda caption: substitutes.near_miss(caption, rng)


def _images(group: Sequence[JudgedImage], batch: PairBatch, term: str) -> int:
    """How many images of a group have something to say on a term; on anchors none that meets no other image."""
    if term == "anchor":
        return len(batch.image_index[batch.top].unique()) if len(batch.mismatched) else 0
    return sum(bool(image.better) if term == "preference" else image.rated for image in group)
