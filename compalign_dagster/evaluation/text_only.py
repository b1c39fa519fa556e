"""A scorer that never sees the image: what a caption alone tells about the judgement it will get.

What belongs here: the control that a reward must beat, or it has learned what captions people like and
not which ones fit. It is a linear model of hashed words, word pairs and length, trained on the same
judgements: Bradley-Terry on comparisons of one image and, where people rated, yes or no on single captions.
"""

import itertools
import math
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from compalign_dagster.reward.calibration import human_yes

_BUCKETS = 2048
_LENGTHS = 2
_WORD = re.compile(r"\w+")
_RIDGE = 3e-3  # of the weights, against a mean loss
_STEPS = 60


@dataclass(frozen=True)
class TextOnly:
    """Weights over hashed words and lengths, float64 [2050]; larger scores are preferred captions."""

    weights: np.ndarray

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Scores, float64 [N]."""
        return features(texts) @ self.weights


def fit_text_only(
    captions: pa.Table, ranks: pa.Table, comparisons: pa.Table, images: Collection[str]
) -> TextOnly | None:
    """The control for a model that learned from the judgements of `images`; None where they say nothing.

    Tables follow `annotation.tables`. The loss is convex and starts at zero, so that nothing is drawn.
    """
    wanted = set(images)
    columns = ["image_id", "caption_id", "caption"]
    texts = {
        (row["image_id"], row["caption_id"]): row["caption"]
        for row in captions.select(columns).to_pylist()
        if row["image_id"] in wanted
    }
    place = {caption: at for at, caption in enumerate(sorted(texts))}
    preferred = [
        (place[row["image_id"], row["better"]], place[row["image_id"], row["worse"]])
        for row in comparisons.to_pylist()
        if row["image_id"] in wanted and not row["tie"]
    ]
    votes = human_yes(ranks, wanted)
    if not preferred and not votes:
        return None
    inputs = torch.from_numpy(features([texts[caption] for caption in sorted(texts)]))
    better, worse = torch.tensor(preferred, dtype=torch.int64).reshape(-1, 2).T
    rated = torch.tensor([place[caption] for caption in votes], dtype=torch.int64)
    yes = torch.tensor([share for share, _ in votes.values()], dtype=torch.float64)
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, offset], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        score = inputs @ weights
        total = _RIDGE * (weights**2).sum()
        if len(better):
            total = total + F.softplus(score[worse] - score[better]).mean()
        if len(rated):
            total = total + F.binary_cross_entropy_with_logits(score[rated] + offset, yes)
        total.backward()
        return total

    optimiser.step(loss)
    return TextOnly(weights.detach().numpy())


def features(texts: Sequence[str]) -> np.ndarray:
    """Hashed counts of words and word pairs, scaled to unit length, and two of length, float64 [N, 2050]."""
    found = np.zeros((len(texts), _BUCKETS + _LENGTHS))
    for row, text in zip(found, texts, strict=True):
        words = _WORD.findall(text.lower())
        for token in [*words, *map(" ".join, itertools.pairwise(words))]:
            row[zlib.crc32(token.encode()) % _BUCKETS] += 1
        row[:_BUCKETS] /= max(1.0, math.sqrt(float(row @ row)))
        row[_BUCKETS:] = math.log1p(len(words)) / 3, math.log1p(len(text)) / 5
    return found
