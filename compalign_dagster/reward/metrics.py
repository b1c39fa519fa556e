"""Held-out figures of a reward model, each with its count and an interval over images.

What belongs here: agreement with people within an image, calibration across images, and the same
for the baselines. What does not: rank correlations and reports (`evaluation/`), the gate (`promotion.py`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.loading import ImageLoader, states_of
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.statistics import auc, bootstrap_over, preference_accuracy

BASELINES = ("cosine", "itm", "caption_length")
_BATCH_IMAGES = 32
_NEIGHBOURS = 5  # mismatched captions for each image of the cross-image figure


def held_out_metrics(model: RewardModel, images: ImageLoader, split: list[JudgedImage], *, seed: int) -> dict[str, Any]:
    """Preference accuracy and cross-image AUC on `split`, for the reward and the baselines; JSON values.

    An estimate is `{value, low, high, n}` with a 95 % bootstrap interval over images, or
    `{value: None, low: None, high: None, n: 0}` where there is nothing to measure.
    """
    image, text, own, better, worse, top = _rows(split)
    scores = score_rows(model, images, split, image, text)
    scores["caption_length"] = np.array([len(caption) for caption in text], np.float64)
    positive = np.array(top, np.int64)
    negative = np.flatnonzero(~own)
    agreement = {name: _agreement(values, image, better, worse, seed) for name, values in scores.items()}
    across = {name: _across(values, image, positive, negative, seed) for name, values in scores.items()}
    rewards = scores["reward"][own]
    return {
        "preference_accuracy": agreement["reward"],
        "cross_image_auc": across["reward"],
        "reward_mean": float(rewards.mean()) if len(rewards) else None,
        "reward_std": float(rewards.std()) if len(rewards) else None,
        "test_images": len(split),
        "baselines": {
            name: {"preference_accuracy": agreement[name], "cross_image_auc": across[name]} for name in BASELINES
        },
    }


def score_rows(
    model: RewardModel, images: ImageLoader, split: list[JudgedImage], image: np.ndarray, text: list[str]
) -> dict[str, np.ndarray]:
    """Reward, cosine and itm (float64 [N]) of row n: image `image[n]` of the split with caption `text[n]`.

    `image` is sorted; every image is encoded once.
    """
    found: dict[str, list[np.ndarray]] = {"reward": [], "cosine": [], "itm": []}
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(split), _BATCH_IMAGES):
            stop = min(start + _BATCH_IMAGES, len(split))
            first, last = np.searchsorted(image, [start, stop])
            states = states_of(model, images, [item.place for item in split[start:stop]])
            index = torch.from_numpy(image[first:last] - start)
            outputs = model(states, text[first:last], index)
            for name, values in found.items():
                values.append(getattr(outputs, name).double().cpu().numpy())
    return {name: np.concatenate(values) if values else np.zeros(0) for name, values in found.items()}


def _rows(
    split: list[JudgedImage],
) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Rows of own and mismatched captions, sorted by image, with the comparisons and best rows among them."""
    image: list[int] = []
    text: list[str] = []
    own: list[bool] = []
    better: list[int] = []
    worse: list[int] = []
    top: list[int] = []
    for at, item in enumerate(split):
        first = len(text)
        better += [first + row for row in item.better]
        worse += [first + row for row in item.worse]
        top += [first + row for row in item.top]
        others = [split[(at + step) % len(split)] for step in range(1, min(_NEIGHBOURS, len(split) - 1) + 1)]
        wrong = [other.captions[other.top[0]] for other in others if other.top]
        wrong = [caption for caption in wrong if caption not in item.captions]
        text += [*item.captions, *wrong]
        own += [True] * len(item.captions) + [False] * len(wrong)
        image += [at] * (len(item.captions) + len(wrong))
    return (
        np.array(image, np.int64),
        text,
        np.array(own, bool),
        np.array(better, np.int64),
        np.array(worse, np.int64),
        top,
    )


def _agreement(
    values: np.ndarray, image: np.ndarray, better: np.ndarray, worse: np.ndarray, seed: int
) -> dict[str, Any]:
    return _estimate(
        image[better],
        lambda rows: preference_accuracy(values[better[rows]], values[worse[rows]]),
        seed,
        measurable=bool(np.isfinite(values).all()),
    )


def _across(
    values: np.ndarray, image: np.ndarray, positive: np.ndarray, negative: np.ndarray, seed: int
) -> dict[str, Any]:
    both = np.concatenate([positive, negative])
    matched = np.arange(len(both)) < len(positive)

    def statistic(rows: np.ndarray) -> float:
        return auc(values[both[rows[matched[rows]]]], values[both[rows[~matched[rows]]]])

    measurable = bool(np.isfinite(values).all() and len(positive) and len(negative))
    return _estimate(image[both], statistic, seed, measurable=measurable)


def _estimate(
    groups: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int, *, measurable: bool
) -> dict[str, Any]:
    if not measurable or len(groups) == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    return bootstrap_over(groups, statistic, seed=seed).as_dict()
