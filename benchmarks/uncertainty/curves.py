"""Choosing what to label: learning curves of strategies at equal budgets of questions.

What belongs here: what may be asked, who chooses, what is learned from the answers. What does not: how sure a reward
is (`measure.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.uncertainty.heads import PRECISION, Remembered, Trainer, rows_of
from benchmarks.uncertainty.measure import held_out
from compalign_dagster.reward.acquisition import most_informative
from compalign_dagster.reward.data import JudgedImage, TrainingData, judged_images
from compalign_dagster.reward.uncertainty import Fitted
from compalign_dagster.statistics import Bootstrap, mean_of

STRATEGIES = ("random", "closest", "most informative")
_MOST_PER_IMAGE = 2


@dataclass(frozen=True)
class Pool:
    """Pairs of captions that may be asked of people, of a fold's training and validation images."""

    image: np.ndarray  # int64 [P], place among the images
    differences: np.ndarray  # float64 [P, K]
    asked: list[tuple[str, frozenset[str]]]  # image and captions of each


def pool_of(model: Remembered, images: Sequence[JudgedImage], data: TrainingData) -> Pool:
    """Every pair of captions that people compared, whatever they said."""
    features, _ = rows_of(model, images)
    starts = np.cumsum([0, *(len(image.captions) for image in images)])
    place = {image.image_id: at for at, image in enumerate(images)}
    pairs = sorted({
        (place[row["image_id"]], *sorted((row["better"], row["worse"])))
        for row in data.comparisons.to_pylist() if row["image_id"] in place
    })  # fmt: skip
    rows = [[starts[at] + images[at].caption_ids.index(caption) for caption in captions] for at, *captions in pairs]
    first, second = torch.tensor(rows).T
    asked = [(images[at].image_id, frozenset(captions)) for at, *captions in pairs]
    return Pool(np.array([at for at, *_ in pairs]), (features[first] - features[second]).numpy(), asked)


def labelled(
    data: TrainingData, images: Sequence[JudgedImage], asked: Sequence[tuple[str, frozenset[str]]]
) -> list[JudgedImage]:
    """The images with the answers to these questions alone, and no ratings."""
    known = set(asked)
    rows = data.comparisons.to_pylist()
    kept = pa.array([(row["image_id"], frozenset((row["better"], row["worse"]))) in known for row in rows], pa.bool_())
    ids = {image_id for image_id, _ in known} & {image.image_id for image in images}
    table = data.images.filter(pa.array([name in ids for name in data.images["image_id"].to_pylist()], pa.bool_()))
    column = table.schema.get_field_index("split")
    table = table.set_column(column, table.schema.field(column), pa.array(["train"] * table.num_rows, pa.string()))
    part = replace(data, images=table, comparisons=data.comparisons.filter(kept), ranks=data.ranks.slice(0, 0))
    return judged_images(part, "train")


def learning_curve(
    trainer: Trainer,
    data: TrainingData,
    splits: Mapping[str, list[JudgedImage]],
    first: int,
    *,
    budgets: Sequence[int],
    strategy: str,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """At each budget of questions: agreement and log-loss of each held-out answer, float64 [C] each, one fold.

    Questions are chosen in rounds from one budget to the next, each by the head that learned from those before.
    """
    images = [*splits["train"], *splits["validation"]]
    model, known = trainer.untrained(), None
    pool = pool_of(model, images, data)
    rng = np.random.default_rng([seed, first])
    chosen: list[int] = []
    found = []
    for budget in budgets:
        open_ = np.array(sorted(set(range(len(pool.asked))) - set(chosen)))
        asked = np.bincount(pool.image[chosen], minlength=len(images)) if chosen else np.zeros(len(images), int)
        open_ = open_[asked[pool.image[open_]] < _MOST_PER_IMAGE]
        more = _choose(strategy, pool, open_, model, known, budget - len(chosen), rng)
        chosen += open_[more].tolist()
        learned = labelled(data, images, [pool.asked[at] for at in chosen])
        if strategy == "most informative":
            model, known = trainer.sure_head(learned, seed=seed, rating_weight=0.0, criteria_weight=0.0)
        else:
            model, _ = trainer.head(learned, seed=seed, rating_weight=0.0, criteria_weight=0.0)
        test = held_out(model, splits["test"], first)
        difference = (test.rewards[test.better] - test.rewards[test.worse]).numpy()
        found.append(((difference > 0).astype(float), np.logaddexp(0, -difference)))
    return found


def _choose(
    strategy: str,
    pool: Pool,
    open_: np.ndarray,
    model: Remembered,
    known: Fitted | None,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Places in `open_` to ask next, at most one new pair of an image."""
    image, differences = pool.image[open_], pool.differences[open_]
    rewards = differences @ model.last_layer().detach().double().numpy()
    if strategy == "most informative":
        size = differences.shape[1]
        factor = known.factor.numpy() if known else np.eye(size) * PRECISION**-0.5
        return most_informative(differences, rewards, image, factor, count=count, seed=int(rng.integers(2**31)))
    order = rng.permutation(len(open_))
    if strategy == "closest":
        order = order[np.argsort(np.abs(rewards[order]), kind="stable")]
    _, places = np.unique(image[order], return_index=True)
    return order[np.sort(places)][:count]


def curve_figures(
    runs: Mapping[str, Sequence[Sequence[tuple[np.ndarray, ...]]]],
    image: np.ndarray,
    budgets: Sequence[int],
    draws: Bootstrap,
) -> list[dict[str, Any]]:
    """By budget: every strategy's figures, the mean over seeds, and the paired lead over random choice."""
    entries = []
    for at, budget in enumerate(budgets):
        sampled = {
            name: [draws.figure(mean_of(np.mean([run[at][which] for run in seeds], axis=0)), image) for which in (0, 1)]
            for name, seeds in runs.items()
        }
        entries.append({
            "budget": budget,
            "strategies": {
                name: {
                    "agreement": agreement.as_dict(), "log_loss": loss.as_dict(),
                    "agreement_minus_random": agreement.minus(sampled["random"][0]).as_dict(),
                    "log_loss_minus_random": loss.minus(sampled["random"][1]).as_dict(),
                }
                for name, (agreement, loss) in sampled.items()
            },
        })  # fmt: skip
    return entries
