"""What an unlabelled crawl teaches the offline backbone, in closed form: where a picture's captions would lie.

Kernel ridge regression from image features onto the captions' own space keeps MiniLM's geometry; a contrastive
loss on a few thousand pairs does not. Three things make it fit to judge a crawl with:

- trust: a pair counts by the chance that it is a match, judged by what the rest of the crawl says of its image
  (most may be wrong; mismatches are known from captions put beside other images), and the more so the more pairs
  are wrong;
- a metric: directions in which captions scatter around their prediction are shrunk, by the inverse square root of
  their residual covariance;
- left-out predictions: an image that was learned from is predicted without itself, so that its reward compares with
  those of images never seen. (Closed form of leave-one-out for ridge regression: Golub, Heath, Wahba 1979.)

What does not belong here: the frozen encoders, human labels, the reward head (`offline.py`).
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compalign_dagster.reward.offline_features import IMAGE_FEATURES, TEXT_FEATURES

MOST_IMAGES = 8192  # learned from: the kernel matrix grows with their square, solving with their cube
DIRECTIONS = 512  # principal directions of the image features that are kept
AGREEMENTS = 2  # ways in which an image and a caption are compared: prediction, neighbours
_RIDGE = 0.3
_SHRINK = 8.0  # of the residual covariance towards a sphere
_LEAST_SPHERE = 1e-9  # where captions do not scatter at all
_ROUNDS = 2  # of weighing pairs by trust
_LEAST_TRUST = 1e-3
_APART = 1009  # captions between one and the one that stands for a mismatch; half of them all where they are few
_EM_STEPS = 200
_LEAST_WIDTH = 1e-3  # of a component, in cosines
_NEIGHBOURS = 30
_NEARNESS = 0.1  # temperature of the neighbours' weights, in cosines
_SAME = 1e-4  # squared distance of features below which two images are one; others lie near 2
_PROBES = 512  # images of the crawl from which the scale of the agreements is measured


@dataclass(frozen=True)
class View:
    """Images as the crawl sees them. `vector` [B, 384] are unit; `near` int64 and `weight` [B, K] the neighbours."""

    vector: Tensor
    near: Tensor
    weight: Tensor


class CrawlMemory(nn.Module):
    """Buffers only: nothing here is trained by gradients. M images and K captions of the crawl are remembered."""

    centre: Tensor  # [384], mean caption vector, by trust
    metric: Tensor  # [384, 384]
    image_mean: Tensor  # [2560], of square roots of features
    image_scale: Tensor  # [2560]
    directions: Tensor  # [2560, D]
    places: Tensor  # [M, D]
    dual: Tensor  # [M, 384]
    without: Tensor  # [M, 384], unit: each image's prediction from the others
    middle: Tensor  # [M, 384], unit: the mean of each image's own captions, by trust
    captions: Tensor  # [K, 384], unit, in the metric, those of one image together
    trust: Tensor  # [K], 0 to 1
    first: Tensor  # int64 [M + 1], where an image's captions begin
    scale: Tensor  # [2, 2], mean and standard deviation of both agreements over pairs of the crawl

    def __init__(self, images: int = 1, captions: int = 1) -> None:
        super().__init__()
        shapes = {
            "centre": (TEXT_FEATURES,),
            "metric": (TEXT_FEATURES, TEXT_FEATURES),
            "image_mean": (IMAGE_FEATURES,),
            "image_scale": (IMAGE_FEATURES,),
            "directions": (IMAGE_FEATURES, DIRECTIONS),
            "places": (images, DIRECTIONS),
            "dual": (images, TEXT_FEATURES),
            "without": (images, TEXT_FEATURES),
            "middle": (images, TEXT_FEATURES),
            "captions": (captions, TEXT_FEATURES),
            "trust": (captions,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("first", torch.arange(images + 1).clamp(max=captions))
        self.register_buffer("scale", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    @classmethod
    def learn(cls, features: Tensor, captions: Tensor, owner: Tensor) -> Self:
        """From image features [M, 2560] and caption vectors [K, 384] with their images (int64 [K], sorted).

        Every image has at least one caption. What the last crawl taught is kept, because the folds of a
        cross-validation learn from one crawl; every caller gets a copy of its own.
        """
        global _last
        key, known = _digest(features, captions, owner) + f" {torch.get_num_threads()}", _last
        if known is None or known[0] != key:
            known = _last = key, cls._solved(features, captions, owner)
        return copy.deepcopy(known[1])

    @classmethod
    def _solved(cls, features: Tensor, captions: Tensor, owner: Tensor) -> Self:
        memory = cls(len(features), len(captions))
        memory.first.copy_(torch.searchsorted(owner, torch.arange(len(features) + 1)))
        memory._learn_images(features)
        places = memory.places.double()
        kernel = torch.exp(-_squared(places, places))
        trust = torch.ones(len(captions), dtype=torch.float64)
        captions, apart = captions.double(), min(_APART, len(captions) // 2)
        for round_ in range(_ROUNDS + 1):
            centre = _mean(captions, trust, torch.zeros_like(owner), 1)[0]
            centred = F.normalize(captions - centre, dim=1)
            solve, spared = _ridge(kernel, torch.zeros(len(features)).double().index_add_(0, owner, trust))
            residual = centred - _left_out(_mean(centred, trust, owner, len(features)), solve, spared)[owner]
            metric = _metric(residual, trust)
            seen = F.normalize(centred @ metric, dim=1)
            target = _mean(seen, trust, owner, len(features))
            without = F.normalize(_left_out(target, solve, spared), dim=1)
            if round_ < _ROUNDS:
                mismatched = (without[owner] * seen.roll(apart, 0)).sum(1)[owner != owner.roll(apart)]
                trust = _chance_of_match((without[owner] * seen).sum(1), mismatched)
        found = {"centre": centre, "metric": metric, "dual": solve(target), "without": without, "captions": seen}
        found["middle"] = F.normalize(target, dim=1)
        for name, value in {**found, "trust": trust}.items():
            getattr(memory, name).copy_(value)
        memory._measure_scale(features, owner)
        return memory

    def view(self, features: Tensor) -> View:
        """Features [B, 2560] as the crawl sees them; an image that was learned from is looked at without itself."""
        places = self._places(features)
        squared = _squared(places, self.places)
        distance, same = squared.min(1)
        known = distance < _SAME
        vector = F.normalize(torch.exp(-squared) @ self.dual, dim=1)
        vector = torch.where(known[:, None], self.without[same], vector)
        closeness = vector @ self.middle.T
        closeness[known, same[known]] = -torch.inf
        best, near = closeness.topk(min(_NEIGHBOURS, len(self.middle)), dim=1)
        weight = torch.exp((best - best[:, :1]) / _NEARNESS).nan_to_num(1.0)
        return View(vector, near, weight)

    def seen(self, captions: Tensor) -> Tensor:
        """Caption vectors [N, 384] as unit vectors in the metric."""
        return F.normalize(F.normalize(captions - self.centre, dim=1) @ self.metric, dim=1)

    def agreements(self, view: View, captions: Tensor, image_index: Tensor) -> Tensor:
        """How `seen` captions [N, 384] agree with their images, [N, 2], in standard deviations over the crawl.

        First with the predicted caption, then with the captions of those images whose captions lie near the
        prediction: the best of each such image, by nearness and trust.
        """
        predicted = (view.vector[image_index] * captions).sum(1)
        around = torch.zeros_like(predicted)
        for image in image_index.unique().tolist():
            rows = (image_index == image).nonzero()[:, 0]
            around[rows] = self._around(view.near[image], view.weight[image], captions[rows])
        found = torch.stack([predicted, around], dim=1)
        return (found - self.scale[:, 0]) / self.scale[:, 1]

    def _around(self, near: Tensor, weight: Tensor, captions: Tensor) -> Tensor:
        starts, stops = self.first[near], self.first[near + 1]
        most = int((stops - starts).max())
        at = starts[:, None] + torch.arange(most, device=starts.device)
        there = at < stops[:, None]
        at = at.clamp(max=len(self.captions) - 1)
        trust = self.trust[at].clamp(max=1.0) * there  # [K, most]
        likeness = (captions @ self.captions[at].flatten(0, 1).T).unflatten(1, at.shape)  # [N, K, most]
        best = (likeness * trust).masked_fill(~there, -torch.inf).amax(2)
        weight = weight * trust.amax(1)
        return (best @ weight) / weight.sum().clamp(min=1e-12)

    def _learn_images(self, features: Tensor) -> None:
        roots = features.clamp(min=0).sqrt()
        self.image_mean.copy_(roots.mean(0))
        self.image_scale.copy_(roots.std(0, correction=0) + 1e-6)
        standard = ((roots - self.image_mean) / self.image_scale / IMAGE_FEATURES**0.5).double()
        kept = _principal(standard)
        self.directions[:, : kept.shape[1]] = kept.float()
        self.places.copy_(self._places(features))

    def _places(self, features: Tensor) -> Tensor:
        roots = features.clamp(min=0).sqrt()
        return (roots - self.image_mean) / self.image_scale / IMAGE_FEATURES**0.5 @ self.directions

    def _measure_scale(self, features: Tensor, owner: Tensor) -> None:
        """Over captions of some images of the crawl, each with its own image and with the next one's."""
        probes = torch.linspace(0, len(features) - 1, min(_PROBES, len(features))).long().unique()
        own = self.captions[self.first[probes]]
        index = torch.arange(len(probes))
        view = self.view(features[probes])
        found = torch.cat([self.agreements(view, own, index), self.agreements(view, own, index.roll(1))])
        self.scale.copy_(torch.stack([found.mean(0), found.std(0, correction=0).clamp(min=1e-3)], dim=1))


_last: tuple[str, Any] | None = None  # what was learned from last here, with how many threads, and its memory


def _digest(*parts: Tensor) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part.dtype}{tuple(part.shape)}".encode())
        found.update(part.cpu().numpy().tobytes())
    return found.hexdigest()


def _principal(rows: Tensor) -> Tensor:
    """At most `DIRECTIONS` principal directions of rows [M, D], largest first, [D, R]."""
    few = len(rows) < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if few else rows.T @ rows)
    values, vectors = values.flip(0)[:DIRECTIONS], vectors.flip(1)[:, :DIRECTIONS]
    there = values > 1e-9 * values[0]
    values, vectors = values[there], vectors[:, there]
    if few:
        vectors = rows.T @ vectors / values.sqrt()
    return vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)  # of two opposite eigenvectors, always the same


def _squared(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances [A, B]."""
    return ((one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T).clamp(min=0)


def _mean(values: Tensor, weight: Tensor, group: Tensor, groups: int) -> Tensor:
    """Weighted means of rows by group, [groups, D]."""
    total = torch.zeros(groups, dtype=values.dtype).index_add_(0, group, weight)
    sums = torch.zeros(groups, values.shape[1], dtype=values.dtype).index_add_(0, group, values * weight[:, None])
    return sums / total[:, None]


def _ridge(kernel: Tensor, weight: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Solver of kernel ridge regression with these weights of images, and the diagonal of the inverse."""
    noise = _RIDGE / (weight / weight.mean()).clamp(_LEAST_TRUST)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel + torch.diag(noise)))
    return lambda target: inverse @ target, inverse.diagonal()


def _left_out(target: Tensor, solve: Callable[[Tensor], Tensor], diagonal: Tensor) -> Tensor:
    """Prediction of each image's target from all other images."""
    return target - solve(target) / diagonal[:, None]


def _chance_of_match(found: Tensor, mismatched: Tensor) -> Tensor:
    """Chance that each pair is a match, [K], from its cosine and the cosines of mismatches.

    Two normal components, that of mismatches fixed, the share and the shape of the other by EM: the local false
    discovery rate of Efron (2004), subtracted from 1. Without mismatches, or where no pair looks like a match, all
    are trusted alike.
    """
    if not len(mismatched):
        return torch.ones_like(found)
    middle, width = mismatched.mean(), mismatched.std(correction=0).clamp(min=_LEAST_WIDTH)
    wrong = torch.distributions.Normal(middle, width)
    share, high, spread = torch.tensor(0.5), found.quantile(0.9), width
    for _ in range(_EM_STEPS):
        right = torch.distributions.Normal(high, spread.clamp(min=_LEAST_WIDTH))
        # below the typical mismatch nothing is a better match
        odds = [right.log_prob(at) - wrong.log_prob(at) for at in (found, found.clamp(min=middle))]
        chance = torch.sigmoid(torch.logit(share) + torch.minimum(*odds))
        if not chance.any():
            return torch.ones_like(found)
        share = chance.mean().clamp(0.01, 0.99)
        high = (chance * found).sum() / chance.sum()
        spread = ((chance * (found - high) ** 2).sum() / chance.sum()).sqrt()
    return chance.clamp(_LEAST_TRUST)


def _metric(residual: Tensor, weight: Tensor) -> Tensor:
    """Inverse square root of the shrunk residual covariance, [384, 384]."""
    covariance = (residual * weight[:, None]).T @ residual / weight.sum()
    sphere = (_SHRINK * covariance.trace() / len(covariance)).clamp(min=_LEAST_SPHERE)
    covariance += sphere * torch.eye(len(covariance))
    values, vectors = torch.linalg.eigh(covariance)
    metric = vectors @ torch.diag(values**-0.5) @ vectors.T
    return metric / metric.diagonal().mean()
