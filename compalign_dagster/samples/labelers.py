"""Simulated labelers: ratings and rankings that follow the true quality, with noise and temper.

What belongs here: who the labelers are and how they judge. What does not: which captions an image
gets (`crawl.py`). They are not people; agreement with them says nothing about agreement with people.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compalign_dagster.samples.captions import CRITERIA, WEIGHTS, Quality


@dataclass(frozen=True)
class Labeler:
    """One labeler. `noise` is the standard deviation of a rating before rounding."""

    name: str
    severity: float  # points taken off every rating
    noise: float
    tie: float  # weighted points below which two captions count as equal
    seconds: float  # typical time for one image


LABELERS = (
    Labeler("labeler-1", severity=0.0, noise=0.5, tie=0.12, seconds=48.0),
    Labeler("labeler-2", severity=0.5, noise=0.6, tie=0.18, seconds=35.0),
    Labeler("labeler-3", severity=-0.4, noise=0.95, tie=0.25, seconds=21.0),
)
GUIDELINE = "sample-1"


def judge(labeler: Labeler, captions: Mapping[str, Quality], rng: random.Random) -> dict[str, Any]:
    """One judgement as in the annotation contract: ratings per caption id, then a ranking with ties.

    The ranking goes by the labeler's own weighted ratings and a little noise, since people rank what
    they see and not what they wrote.
    """
    ratings, felt = {}, {}
    for caption_id, quality in captions.items():
        raw = {name: _rate(getattr(quality, name), labeler, rng) for name in CRITERIA}
        ratings[caption_id] = {name: _rounded(value) for name, value in raw.items()}
        felt[caption_id] = sum(WEIGHTS[name] * value for name, value in raw.items()) + rng.gauss(0, 0.05)
    return {
        "labeler": labeler.name,
        "ranking": _with_ties(felt, labeler.tie),
        "ratings": ratings,
        "seconds": round(labeler.seconds * rng.lognormvariate(0, 0.3), 1),
        "guideline": GUIDELINE,
    }


def _rate(true: float, labeler: Labeler, rng: random.Random) -> float:
    return true - labeler.severity + rng.gauss(0, labeler.noise)


def _rounded(rating: float) -> int:
    return min(5, max(1, round(rating)))


def _with_ties(felt: Mapping[str, float], tie: float) -> list[list[str]]:
    """Caption ids from best to worst; those within `tie` of a place's first share that place."""
    places: list[list[str]] = []
    first = 0.0
    for caption_id in sorted(felt, key=lambda name: (-felt[name], name)):
        if places and first - felt[caption_id] < tie:
            places[-1].append(caption_id)
        else:
            places.append([caption_id])
            first = felt[caption_id]
    return places
