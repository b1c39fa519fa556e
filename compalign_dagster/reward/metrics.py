"""Held-out figures of a reward model, each with its count and an interval over images.

What belongs here: scoring held-out pairs, agreement with people within an image, separation across
images, the same for the baselines, and what those figures say about rewards across images. What does not:
the full evidence (`evaluation.evidence`), the gate (`promotion.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.loading import ImageLoader, states_of
from compalign_dagster.reward.model import Outputs, RewardModel
from compalign_dagster.statistics import Bootstrap, Concordance, Sampled, mean_of

LABEL_FREE = ("cosine", "itm", "label_free")  # scores of a backbone that no human label has touched
BASELINES = (*LABEL_FREE, "caption_length")
SCORES = ("reward", *LABEL_FREE)
LEAST_KEPT = 0.8  # of the separation within images that must be left across images
MISMATCHES = 5  # mismatched captions for each image of the cross-image figures
_BATCH_IMAGES = 32

Known = Mapping[str, Mapping[tuple[str, str], float]]
"""Scorer -> (image_id, caption text) -> score."""


@dataclass(frozen=True)
class HeldOutRows:
    """Captions of a split's images, sorted by image: each image's own, then other images' best ones."""

    image: np.ndarray  # int64 [N], place in the split
    text: list[str]
    own: np.ndarray  # bool [N]
    better: np.ndarray  # int64 [P], rows
    worse: np.ndarray  # int64 [P], rows
    top: np.ndarray  # int64 [K], rows of best own captions that people accept


def held_out_metrics(
    model: RewardModel,
    images: ImageLoader,
    split: list[JudgedImage],
    *,
    seed: int,
    before: Known | None = None,
) -> dict[str, Any]:
    """Preference accuracy and cross-image AUC on `split`, for the reward and the baselines; JSON values.

    `before` are `baseline_scores` from before human labels moved the network; without them the baselines
    are those of the network as it is. An estimate is `{value, low, high, n}` with a 95 % bootstrap interval
    over images, or `{value: None, low: None, high: None, n: 0}` where there is nothing to measure.
    """
    rows = held_out_rows(split)
    scores = score_rows(model, images, split, rows.image, rows.text)
    if before is not None:
        scores |= known_scores(before, [split[at].image_id for at in rows.image], rows.text)
    scores["caption_length"] = np.array([len(caption) for caption in rows.text], np.float64)
    draws = Bootstrap(len(split), seed=seed)
    figures = {name: _figures(scores[name], rows, draws) for name in ("reward", *BASELINES)}
    rewards = scores["reward"][rows.own]
    return {
        **figures["reward"],
        "reward_mean": float(rewards.mean()) if len(rewards) else None,
        "reward_spread": float(rewards.std()) if len(rewards) else None,
        "test_images": len(split),
        "baselines": {name: figures[name] for name in BASELINES},
    }


def baseline_scores(
    model: RewardModel, images: ImageLoader, split: list[JudgedImage]
) -> dict[str, dict[tuple[str, str], float]]:
    """Scores without human labels of every held-out row, to be taken before stage 1 moves the network."""
    rows = held_out_rows(split)
    scores = score_rows(model, images, split, rows.image, rows.text)
    places = [(split[at].image_id, text) for at, text in zip(rows.image, rows.text, strict=True)]
    return {name: dict(zip(places, scores[name].tolist(), strict=True)) for name in LABEL_FREE}


def known_scores(known: Known, image_ids: list[str], texts: list[str]) -> dict[str, np.ndarray]:
    """Those scores in the order of these pairs, float64 [N]; NaN for a pair that was not scored."""
    places = list(zip(image_ids, texts, strict=True))
    return {name: np.array([found.get(place, np.nan) for place in places]) for name, found in known.items()}


def score_rows(
    model: RewardModel, images: ImageLoader, split: list[JudgedImage], image: np.ndarray, text: list[str]
) -> dict[str, np.ndarray]:
    """Scores (float64 [N]) of row n: image `image[n]` of the split with caption `text[n]`.

    Keys are SCORES and CRITERIA; NaN for what the model lacks. `image` is sorted; every image is encoded once.
    """
    found: list[dict[str, np.ndarray]] = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(split), _BATCH_IMAGES):
            stop = min(start + _BATCH_IMAGES, len(split))
            first, last = np.searchsorted(image, [start, stop])
            states = states_of(model, images, [item.place for item in split[start:stop]])
            outputs = model(states, text[first:last], torch.from_numpy(image[first:last] - start))
            found.append(columns_of(outputs))
    return {name: np.concatenate([part[name] for part in found] or [np.zeros(0)]) for name in (*SCORES, *CRITERIA)}


def columns_of(outputs: Outputs) -> dict[str, np.ndarray]:
    """A model's answer as columns, float64 [N], named by SCORES and CRITERIA."""
    scores = {name: getattr(outputs, name).double().cpu().numpy() for name in SCORES}
    criteria = outputs.criteria.double().cpu().numpy()
    return scores | {name: criteria[:, at] for at, name in enumerate(CRITERIA)}


def people_accept(image: JudgedImage, caption: int) -> bool:
    """Whether people say that a caption fits: their mean rating is at the midpoint or above, or nobody rated it.

    The best of an image's captions may still be wrong, and is then no example of a match.
    """
    given = [value for value in image.ratings[caption] if not math.isnan(value)]
    return not given or math.fsum(given) >= len(given) / 2


def held_out_rows(split: list[JudgedImage]) -> HeldOutRows:
    """Each image's own captions and up to five neighbours' best captions; a function of the split alone."""
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
        top += [first + row for row in item.top if people_accept(item, row)]
        others = [split[(at + step) % len(split)] for step in range(1, min(MISMATCHES, len(split) - 1) + 1)]
        wrong = [other.captions[other.top[0]] for other in others if other.top]
        wrong = [caption for caption in wrong if caption not in item.captions]
        text += [*item.captions, *wrong]
        own += [True] * len(item.captions) + [False] * len(wrong)
        image += [at] * (len(item.captions) + len(wrong))
    arrays = (np.array(rows, np.int64) for rows in (better, worse, top))
    return HeldOutRows(np.array(image, np.int64), text, np.array(own, bool), *arrays)


def cross_auc(score: np.ndarray, upper: np.ndarray, group: np.ndarray, draws: Bootstrap) -> Sampled:
    """AUC of upper rows (bool [N]) against all others over the whole set; undefined where a score is."""
    if not np.isfinite(score).all() or upper.all() or not upper.any():
        return draws.nothing()
    return draws.figure(Concordance(score, upper).auc, group)


def across_images(metrics: Mapping[str, Any], *, beyond_interval: bool = False) -> tuple[bool, str]:
    """Whether rewards that rank captions of one image also compare across images, and why in one sentence.

    Rewards with an offset for each image rank captions within an image as before, while a global cut over
    them is meaningless. So the separation across images (AUC - 1/2) is held against the separation of the
    same captions within their images: of matched against mismatched captions and, where people rated, of
    what they accept against what they refuse. At least LEAST_KEPT of the first must be left, and with
    `beyond_interval` at the lower end of its interval too: few images then show too little, and that refuses.
    The second is told and does not decide: what people accept differs between images for any scorer.
    """
    figures = (metrics.get("evidence") or {}).get("across_images") or {}
    matched = figures.get("matched") or {}
    kept = matched.get("kept") or {}
    if kept.get("value") is None:
        return False, "Whether rewards compare across images was not measured: no matched and mismatched captions."
    within, across = (matched[name]["value"] for name in ("within", "across"))
    said = (
        f"Matched captions beat mismatched ones in {within:.1%} of pairs within an image and in {across:.1%} across "
        f"images: {kept['value']:.0%} of the separation is left"
    )
    low = kept.get("low")
    if beyond_interval and low is not None:
        said += f" (95 % interval from {low:.0%})"
    human = (figures.get("human") or {}).get("kept") or {}
    if human.get("value") is not None:
        said += f", and {human['value']:.0%} of that between what people accept and refuse"
    least = float(figures.get("least", LEAST_KEPT))
    if within <= 0.5:
        return False, f"{said}; the rewards do not tell matched captions even within an image."
    lowest = low if beyond_interval else kept["value"]
    if lowest is None or not lowest >= least:
        return False, f"{said}; at least {least:.0%} is needed, or a cut over all images means nothing."
    return True, f"{said}."


def _figures(score: np.ndarray, rows: HeldOutRows, draws: Bootstrap) -> dict[str, Any]:
    """Preference accuracy and cross-image AUC of one scorer."""
    if not np.isfinite(score).all():
        return dict.fromkeys(("preference_accuracy", "cross_image_auc"), draws.nothing().as_dict())
    right = (score[rows.better] > score[rows.worse]).astype(np.float64)
    agreement = draws.figure(mean_of(right), rows.image[rows.better])
    both = np.concatenate([rows.top, np.flatnonzero(~rows.own)])
    across = cross_auc(score[both], np.arange(len(both)) < len(rows.top), rows.image[both], draws)
    return {"preference_accuracy": agreement.as_dict(), "cross_image_auc": across.as_dict()}
