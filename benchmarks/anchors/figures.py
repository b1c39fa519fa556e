"""What is said of every arm: agreement within images, the two cross-image measures, and what is left across images.

What belongs here: figures from one table of held-out scores, all drawn over the same images, so that differences
are paired. What does not: training (`__main__.py`), what the figures mean (`docs/anchors.md`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from compalign_dagster.evaluation.evidence import Judged, scorer_figures
from compalign_dagster.evaluation.held_out import MISMATCHED, HeldOut
from compalign_dagster.reward.calibration import MIDPOINT
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.metrics import cross_auc
from compalign_dagster.statistics import Bootstrap, Sampled, mean_of, within_groups

AGREEMENT = ("tau_c", "mean_preference_accuracy", "cross_image_auc", "human_auc")


def compare(
    held: HeldOut, data: TrainingData, arms: Mapping[str, np.ndarray], reference: str, *, seed: int
) -> dict[str, Any]:
    """Figures of every arm's scores (float64 [N], by name) of the rows of `held`, and its paired lead over `reference`.

    JSON values; an estimate is `{value, low, high, n}`.
    """
    draws = Bootstrap(len(held.images), seed=seed)
    judged = Judged(held, data)
    figures = {name: _figures(score, judged, draws) for name, score in arms.items()}
    found: dict[str, Any] = {}
    for name, given in figures.items():
        found[name] = {figure: value.as_dict() for figure, value in given.items()}
        if name != reference:
            found[name][f"minus {reference}"] = {
                figure: value.minus(figures[reference][figure]).as_dict() for figure, value in given.items()
            }
    return found


def _figures(score: np.ndarray, judged: Judged, draws: Bootstrap) -> dict[str, Sampled]:
    held, image = judged.held, judged.held.image
    found = scorer_figures(score, judged, draws, AGREEMENT)
    right = held.right()
    both = np.concatenate([right, held.kind(MISMATCHED)])
    matched = separation(score[both], np.arange(len(both)) < len(right), image[both], draws)
    accepted = judged.rating >= MIDPOINT
    human = separation(score[judged.rated], accepted, image[judged.rated], draws)
    return found | {"own_within": matched["within"], "own_left": matched["left"],
                    "human_within": human["within"], "human_left": human["left"]}  # fmt: skip


def separation(score: np.ndarray, upper: np.ndarray, image: np.ndarray, draws: Bootstrap) -> dict[str, Sampled]:
    """AUC of upper against lower rows (bool [N]) `within` images, `across` all, and the share of AUC - 1/2 `left`.

    What `compalign_dagster.evaluation.evidence` says of a model as `across_images`, with its draws, so that two arms
    can be held against each other.
    """
    across = cross_auc(score, upper, image, draws)
    if not across.n:
        return {"within": draws.nothing(), "across": across, "left": draws.nothing()}
    wins, owner = within_groups(score, upper, image)
    within = draws.figure(mean_of(wins), owner)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = (across.draws - 0.5) / (within.draws - 0.5)
        value = float(np.float64(across.value - 0.5) / (within.value - 0.5))
    return {
        "within": within,
        "across": across,
        "left": Sampled(value, np.where(np.isfinite(left), left, np.nan), across.n),
    }
