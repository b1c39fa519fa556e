"""Agreement of scorers with people, and of people with each other, within images.

What belongs here: figures from comparisons and scores. What does not: computing a score.

A comparison is one labeler's preference between two captions of one image. Preference accuracy leaves
out labelers' ties; a scorer's tie is wrong. Tau-b counts ties of either side (Kendall 1945).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from compalign_dagster.statistics import Estimate, bootstrap_mean

Scores = Mapping[tuple[str, str], float]
"""(image_id, caption_id) -> score."""

LENGTH = "caption_length"


def agreement(
    comparisons: pa.Table, captions: pa.Table, scorers: Mapping[str, Scores], *, seed: int = 7
) -> dict[str, dict[str, Any]]:
    """By scorer: estimates `preference_accuracy`, `tau_b` (mean over rankings), `reward_minus_this`.

    `comparisons` and `captions` follow `annotation.tables` and hold held-out images only. Caption length
    in characters is always among the scorers. A scorer without a finite score for every compared caption
    is left out. Intervals are bootstrapped over images.
    """
    lengths = {
        (row["image_id"], row["caption_id"]): float(len(row["caption"]))
        for row in captions.select(["image_id", "caption_id", "caption"]).to_pylist()
    }
    rows = comparisons.to_pylist()
    image = _codes([row["image_id"] for row in rows])
    ranking = _codes([(row["image_id"], row["labeler"]) for row in rows])
    tie = np.array([row["tie"] for row in rows], bool)
    first, second = _sides(rows)
    compared = set(first) | set(second)
    found: dict[str, dict[str, Any]] = {}
    margins: dict[str, np.ndarray] = {}
    for name, scores in {**scorers, LENGTH: lengths}.items():
        if not all(place in scores and np.isfinite(scores[place]) for place in compared):
            continue
        one = np.array([scores[place] for place in first], np.float64)
        other = np.array([scores[place] for place in second], np.float64)
        margins[name] = one - other
        found[name] = {
            "preference_accuracy": _accuracy(one[~tie], other[~tie], image[~tie], seed),
            "tau_b": _tau_b(one - other, tie, ranking, image, seed),
        }
    for name in found:
        if name != "reward" and "reward" in margins:
            gain = (margins["reward"] > 0).astype(float) - (margins[name] > 0)
            found[name]["reward_minus_this"] = bootstrap_mean(gain[~tie], image[~tie], seed=seed).as_dict()
    return found


def labeler_agreement(comparisons: pa.Table, *, seed: int = 7) -> dict[str, Any]:
    """How often labelers of the same image prefer the same caption: `ceiling`, and `labelers` one by one.

    Counted over two labelers and a pair of captions that both ranked without a tie; each labeler's own
    figure is against all others. An estimate of nothing has `n` 0: no image had two labelers.
    """
    signs: dict[tuple[str, str, str], dict[str, int]] = {}
    for row in comparisons.to_pylist():
        if not row["tie"]:
            low, high = sorted((row["better"], row["worse"]))
            signs.setdefault((row["image_id"], low, high), {})[row["labeler"]] = row["better"] == low
    image: list[str] = []
    pairs: list[tuple[str, str]] = []
    same: list[bool] = []
    for (image_id, _, _), by_labeler in sorted(signs.items()):
        names = sorted(by_labeler)
        for at, one in enumerate(names):
            for other in names[at + 1 :]:
                image.append(image_id)
                pairs.append((one, other))
                same.append(by_labeler[one] == by_labeler[other])
    code, agreed = _codes(image), np.array(same, float)
    labelers = sorted({name for pair in pairs for name in pair})
    by_name = {name: np.array([name in pair for pair in pairs], bool) for name in labelers}
    return {
        "ceiling": bootstrap_mean(agreed, code, seed=seed).as_dict(),
        "labelers": {
            name: bootstrap_mean(agreed[mask], code[mask], seed=seed).as_dict() for name, mask in by_name.items()
        },
    }


def _accuracy(one: np.ndarray, other: np.ndarray, image: np.ndarray, seed: int) -> dict[str, Any]:
    return bootstrap_mean((one > other).astype(float), image, seed=seed).as_dict()


def _tau_b(margin: np.ndarray, tie: np.ndarray, ranking: np.ndarray, image: np.ndarray, seed: int) -> dict[str, Any]:
    """Mean over rankings (one labeler, one image) of (C - D) / sqrt(untied by people x untied by scorer)."""
    if not len(margin):
        return Estimate(np.nan, np.nan, np.nan, 0).as_dict()
    score = np.sign(margin) * ~tie
    gained = np.bincount(ranking, weights=score)
    untied = np.bincount(ranking, weights=~tie) * np.bincount(ranking, weights=margin != 0)
    image_of = np.zeros(len(gained), np.int64)
    image_of[ranking] = image
    usable = untied > 0  # a ranking of ties alone, or a constant scorer, has no tau
    return bootstrap_mean(gained[usable] / np.sqrt(untied[usable]), image_of[usable], seed=seed).as_dict()


def _sides(rows: list[dict]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return [(row["image_id"], row["better"]) for row in rows], [(row["image_id"], row["worse"]) for row in rows]


def _codes(values: list) -> np.ndarray:
    """Equal values to equal numbers, int64."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], np.int64)
