"""How sure a reward is, against heads trained again and against what people say.

What belongs here: coverage, errors, chances. What does not: choosing what to label (`curves.py`), tables (`tables.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.uncertainty.heads import Remembered, Trainer, rows_of
from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.uncertainty import Fitted, preference
from compalign_dagster.statistics import Bootstrap, Concordance, Sampled, mean_of, reliability

LEVELS = {0.5: 0.67449, 0.8: 1.28155, 0.9: 1.64485, 0.95: 1.95996}  # of an interval: its half width in deviations
WIDTHS = ("posterior", "refits alone")
_QUINTILES = 5


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of one model: what is compared, how unsure it is. Places count the images of all folds."""

    features: torch.Tensor  # float64 [N, K]
    rewards: torch.Tensor  # float64 [N]
    pairs: torch.Tensor  # int64 [2, P], every two captions of an image
    pair_image: np.ndarray  # int64 [P]
    row_image: np.ndarray  # int64 [N]
    better: torch.Tensor  # int64 [C], rows, one for each untied comparison of a person
    worse: torch.Tensor
    comparison_image: np.ndarray  # int64 [C]


def held_out(model: Remembered, images: Sequence[JudgedImage], first: int) -> HeldOut:
    """What a model says of these images, the first of which is image `first` of all."""
    features, rewards = rows_of(model, images)
    starts = np.cumsum([0, *(len(image.captions) for image in images)])
    pairs = [torch.combinations(torch.arange(int(a), int(b))).T for a, b in pairwise(starts)]
    sizes = np.diff(starts)
    compared = [len(image.better) for image in images]
    own = np.arange(first, first + len(images))
    return HeldOut(
        features,
        rewards,
        torch.cat(pairs, 1),
        np.repeat(own, [part.shape[1] for part in pairs]),
        np.repeat(own, sizes),
        torch.tensor([starts[at] + row for at, image in enumerate(images) for row in image.better]),
        torch.tensor([starts[at] + row for at, image in enumerate(images) for row in image.worse]),
        np.repeat(own, compared),
    )


def inside(change: torch.Tensor, std: torch.Tensor) -> dict[float, np.ndarray]:
    """By level: the share of refits [R, N] whose change lies inside the interval of standard deviation `std` [N]."""
    distance = change.abs() / std
    return {level: (distance <= width).double().mean(0).numpy() for level, width in LEVELS.items()}


def coverage(
    trainer: Trainer,
    splits: Mapping[str, list[JudgedImage]],
    model: Remembered,
    fitted: Fitted,
    first: int,
    refits: int,
) -> dict[str, Any]:
    """How often rewards and differences of heads trained otherwise lie in the intervals of this one, one fold.

    By what was done: `other images` (bootstrap draws of the training images) against this model's intervals, and
    `four times the images` (this model's reward against the intervals of heads of a quarter of its images).
    """
    train, validation = splits["train"], splits["validation"]
    test = held_out(model, splits["test"], first)
    rng = np.random.default_rng([trainer.config.seed, first])
    changes = []
    for at in range(refits):
        drawn = [train[place] for place in rng.integers(0, len(train), len(train))]
        again, _ = trainer.head(drawn, validation, seed=trainer.config.seed + 1 + at)
        changes.append(rows_of(again, splits["test"])[1] - test.rewards)
    few = [train[place] for place in rng.permutation(len(train))[: len(train) // 4]]
    little, of_little = trainer.sure_head(few, validation)
    later = (rows_of(little, splits["test"])[1] - test.rewards)[None]
    return {
        "other images": _covered(torch.stack(changes), test, fitted),
        "four times the images": _covered(later, test, of_little),
    }


def _covered(change: torch.Tensor, test: HeldOut, fitted: Fitted) -> dict[str, Any]:
    """By what is bounded and by width: shares inside [N] by level, the deviations claimed [N] and met [R, N]."""
    first, second = test.pairs
    factors = {"posterior": fitted.factor, "refits alone": fitted.known.sampling_factor(fitted.precision)}
    found: dict[str, Any] = {}
    for name, features, moved, image in (
        ("reward", test.features, change, test.row_image),
        (
            "difference",
            test.features[first] - test.features[second],
            change[:, first] - change[:, second],
            test.pair_image,
        ),
    ):
        for width, factor in factors.items():
            std = (features @ factor).norm(dim=1)
            found[f"{name}, {width}"] = {
                "inside": inside(moved, std),
                "claimed": (std**2).numpy(),
                "met": (moved**2).mean(0).numpy(),
                "image": image,
            }
    return found


def coverage_figures(folds: Sequence[Mapping[str, Any]], draws: Bootstrap) -> list[dict[str, Any]]:
    """The folds together, one entry for each way of training otherwise, quantity and width."""
    entries = []
    for how in folds[0]:
        for what in folds[0][how]:
            parts = [fold[how][what] for fold in folds]
            image = np.concatenate([part["image"] for part in parts])
            claimed, met = (np.concatenate([part[name] for part in parts]) for name in ("claimed", "met"))
            levels = {
                str(level): draws.figure(
                    mean_of(np.concatenate([part["inside"][level] for part in parts])), image
                ).as_dict()
                for level in LEVELS
            }
            ratio = float(np.sqrt(claimed.mean() / met.mean()))
            entries.append({
                "how": how, "what": what, "coverage": levels, "claimed_std": float(np.sqrt(claimed.mean())),
                "met_std": float(np.sqrt(met.mean())), "times_as_wide": ratio,
            })  # fmt: skip
    return entries


@dataclass(frozen=True)
class Answers:
    """Held-out answers of single people: differences of rewards, better minus worse, and how unsure they are, [C]."""

    difference: np.ndarray
    std: np.ndarray
    image: np.ndarray


def answers(test: HeldOut, fitted: Fitted) -> Answers:
    """Of one fold."""
    rows = test.features[test.better] - test.features[test.worse]
    difference = test.rewards[test.better] - test.rewards[test.worse]
    return Answers(difference.numpy(), (rows @ fitted.factor).norm(dim=1).numpy(), test.comparison_image)


def error_figures(found: Answers, draws: Bootstrap) -> dict[str, Any]:
    """Do unsure comparisons go wrong more often: agreement by quintile, and AUC of right against wrong answers."""
    right = found.difference > 0
    size = np.abs(found.difference)
    scores = {"|difference|": size, "|difference| / std": size / found.std, "small std": -found.std}
    auc = {name: draws.figure(Concordance(score, right).auc, found.image) for name, score in scores.items()}
    quintiles = {}
    for name, score in scores.items():
        edges = np.quantile(score, np.linspace(0, 1, _QUINTILES + 1)[1:-1])
        of = np.searchsorted(edges, score, "right")
        quintiles[name] = [
            draws.figure(mean_of(right[of == at].astype(float)), found.image[of == at]).as_dict()
            for at in range(_QUINTILES)
        ]
    lead = auc["|difference| / std"].minus(auc["|difference|"])
    return {
        "auc_of_right_answers": {name: value.as_dict() for name, value in auc.items()},
        "auc_lead_of_std": lead.as_dict(),
        "agreement_by_quintile": quintiles,
    }


def probability_figures(found: Answers, draws: Bootstrap) -> dict[str, Any]:
    """P(the preferred caption is preferred) with and without the std: log-loss and calibration error."""
    stds = {"without std": np.zeros_like(found.std), "with std": found.std}
    losses: dict[str, Sampled] = {}
    told: dict[str, Any] = {}
    for name, std in stds.items():
        p = preference(torch.from_numpy(found.difference), torch.from_numpy(std)).numpy()
        losses[name] = draws.figure(mean_of(-np.log(p)), found.image)
        sure, right = np.maximum(p, 1 - p), (p > 0.5).astype(float)
        error, _ = reliability(sure, right, found.image, draws)
        told[name] = {
            "log_loss": losses[name].as_dict(), "ece": error.as_dict(),
            "mean_predicted": float(sure.mean()), "mean_right": float(right.mean()),
        }  # fmt: skip
    return {**told, "log_loss_with_minus_without": losses["with std"].minus(losses["without std"]).as_dict()}
