"""The evidence for a reward model: how it agrees with people, beside every score it replaces.

What belongs here: figures from one table of scores (`held_out.py`) and the judgements of the same images,
all drawn over the same images, so that differences are paired. What does not: scoring, the shortcut
checks (`shortcuts.py`), the gate.

Preference accuracy is over untied comparisons of single people, a scorer's tie is wrong; mean preference
accuracy is over pairs of captions of one image whose mean ratings differ. Rank correlations are over single
ratings in long form: every labeler's rating of every caption is a row, as work on Flickr8k-Expert reports
tau-c. CLIPScore is 2.5 * max(cosine, 0); `cosine` orders captions as it does but for ties below zero.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.evaluation.agreement import labeler_agreement
from compalign_dagster.evaluation.held_out import MISMATCHED, NEAR_MISS, OWN, SCORERS, HeldOut, score_held_out
from compalign_dagster.evaluation.shortcuts import answered, shortcuts
from compalign_dagster.reward.calibration import MIDPOINT, probability, single_ratings
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.metrics import LEAST_KEPT, Known, cross_auc
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.statistics import Bootstrap, Concordance, Sampled, mean_of, reliability, within_groups

LENGTH_BANDS = (("up to 8 words", 0, 8), ("9 to 12 words", 9, 12), ("13 words and more", 13, 1 << 30))
_RANKED = ("tau_b", "tau_c", "spearman")
FIGURES = ("preference_accuracy", "mean_preference_accuracy", *_RANKED, "cross_image_auc", "human_auc")


def evidence_of(
    model: RewardModel, data: TrainingData, *, split: str = "test", before: Known | None = None, seed: int = 7
) -> dict[str, Any]:
    """The evidence on a split's images, as JSON values; an estimate is `{value, low, high, n}`.

    `before` are the baselines from before human labels moved the network (`reward.metrics.baseline_scores`).
    """
    held = score_held_out(model, data, split=split, seed=seed, before=before)
    slope, offset = (float(value) for value in model.calibration.tolist())
    probabilities = probability(held.scores["reward"], slope, offset)
    found = evidence_from(held, data, probabilities, seed=seed)
    found["calibration"] |= {"slope": _finite(slope), "offset": _finite(offset)}
    found["over_long"] |= {"limit_tokens": model.config.max_caption_tokens}
    return found


def evidence_from(held: HeldOut, data: TrainingData, probabilities: np.ndarray, *, seed: int = 7) -> dict[str, Any]:
    """As `evidence_of`, from scores; `probabilities` [N] are the calibrated ones of every row, NaN for none."""
    judged = Judged(held, data)
    draws = Bootstrap(len(held.images), seed=seed)
    figures = {name: scorer_figures(held.scores[name], judged, draws) for name in SCORERS}
    people = labeler_agreement(judged.comparisons, seed=seed)
    return {
        "scorers": _with_leads(figures, held),
        "by_source": {name: _agreement(held, judged, draws, rows) for name, rows in judged.by_source().items()},
        "by_length": {name: _agreement(held, judged, draws, rows) for name, rows in judged.by_length().items()},
        "by_criterion": {name: _criterion(name, held, data, draws) for name in CRITERIA},
        "ceiling": people["ceiling"],
        "one_labeler_against_rest": _against_rest(judged, people["labelers"], draws),
        "calibration": _calibration(probabilities, judged, draws),
        "across_images": {**_across_images(held, judged, draws), "least": LEAST_KEPT},
        "near_misses": {name: near_misses(held, held.scores[name], draws).as_dict() for name in SCORERS},
        "shortcuts": shortcuts(held, judged.better, judged.worse, draws),
        "over_long": {"captions": len(held.kind("own")), "over_long": held.over_long},
        "images": len(held.images),
        "undecodable_images": held.undecodable,
    }


class Judged:
    """The judgements of the scored images, as rows of the table: untied comparisons, and single ratings."""

    def __init__(self, held: HeldOut, data: TrainingData, criteria: Sequence[str] = CRITERIA) -> None:
        place = held.judged()
        self.held = held
        images = set(held.images)
        wanted = np.array([image in images for image in data.comparisons["image_id"].to_pylist()], bool)
        self.comparisons = data.comparisons.filter(pa.array(wanted))
        untied = [row for row in self.comparisons.to_pylist() if not row["tie"]]
        self.better = np.array([place[row["image_id"], row["better"]] for row in untied], np.int64)
        self.worse = np.array([place[row["image_id"], row["worse"]] for row in untied], np.int64)
        ratings = single_ratings(data.ranks, images, criteria)
        self.rated = np.array([place[image_id, caption] for image_id, caption, _, _ in ratings], np.int64)
        self.rating = np.array([rating for *_, rating in ratings], np.float64)
        self.labeler = np.array([labeler for *_, labeler, _ in ratings], str)
        self.source = {
            place[row["image_id"], row["caption_id"]]: row["caption_source"]
            for row in data.captions.select(["image_id", "caption_id", "caption_source"]).to_pylist()
            if row["image_id"] in images
        }

    def by_mean(self) -> tuple[np.ndarray, np.ndarray]:
        """Better and worse rows (int64 [P] each) of every two captions of an image whose mean ratings differ."""
        rows, at = np.unique(self.rated, return_inverse=True)
        mean = np.round(np.bincount(at, weights=self.rating) / np.bincount(at), 3)  # importers round answers
        image = self.held.image[rows]
        pairs = [
            (rows[one], rows[other])
            for group in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(image)) + 1)
            for one, other in permutations(group, 2)
            if mean[one] > mean[other]
        ]
        better, worse = np.array(pairs, np.int64).reshape(-1, 2).T
        return better, worse

    def by_source(self) -> dict[str, np.ndarray]:
        """Comparisons with a caption of each source."""
        sources = [{self.source[one], self.source[other]} for one, other in zip(self.better, self.worse, strict=True)]
        names = sorted({name for pair in sources for name in pair})
        return {name: np.flatnonzero([name in pair for pair in sources]) for name in names}

    def by_length(self) -> dict[str, np.ndarray]:
        """Comparisons by the mean number of words of their two captions."""
        words = np.array([len(row.text.split()) for row in self.held.rows])
        mean = np.rint((words[self.better] + words[self.worse]) / 2)
        bands = {name: np.flatnonzero((mean >= low) & (mean <= high)) for name, low, high in LENGTH_BANDS}
        return {name: rows for name, rows in bands.items() if len(rows)}


def scorer_figures(
    score: np.ndarray, judged: Judged, draws: Bootstrap, wanted: Sequence[str] = FIGURES
) -> dict[str, Sampled]:
    """Figures of one scorer from its score of every row [N]; those it has no scores for are undefined."""
    held, image = judged.held, judged.held.image
    rated = image[judged.rated]
    found = _correlations(
        score[judged.rated], judged.rating, rated, draws, [name for name in wanted if name in _RANKED]
    )
    if "preference_accuracy" in wanted:
        found["preference_accuracy"] = _preference(score, judged.better, judged.worse, image, draws)
    if "mean_preference_accuracy" in wanted:
        found["mean_preference_accuracy"] = _preference(score, *judged.by_mean(), image, draws)
    if "cross_image_auc" in wanted:
        right = held.right()
        both = np.concatenate([right, held.kind(MISMATCHED)])
        found["cross_image_auc"] = cross_auc(score[both], np.arange(len(both)) < len(right), image[both], draws)
    if "human_auc" in wanted:
        found["human_auc"] = cross_auc(score[judged.rated], judged.rating >= MIDPOINT, rated, draws)
    return {name: found[name] for name in wanted}


def _with_leads(figures: Mapping[str, Mapping[str, Sampled]], held: HeldOut) -> dict[str, dict[str, Any]]:
    """Estimates by scorer, how many judged captions it gave a number, and the reward's paired lead over each other."""
    own = held.kind(OWN)
    found: dict[str, dict[str, Any]] = {}
    for name, given in figures.items():
        found[name] = {figure: value.as_dict() for figure, value in given.items()}
        found[name]["scored"] = {"captions": int(np.isfinite(held.scores[name][own]).sum()), "of": len(own)}
        if name != "reward":
            for lead, figure in (("reward_minus_this", "preference_accuracy"), ("tau_c_minus_this", "tau_c")):
                found[name][lead] = figures["reward"][figure].minus(given[figure]).as_dict()
    return found


def _preference(
    score: np.ndarray, better: np.ndarray, worse: np.ndarray, image: np.ndarray, draws: Bootstrap
) -> Sampled:
    if not len(better) or not np.isfinite(score[better]).all() or not np.isfinite(score[worse]).all():
        return draws.nothing()
    return draws.figure(mean_of((score[better] > score[worse]).astype(np.float64)), image[better])


def _correlations(
    score: np.ndarray, rating: np.ndarray, image: np.ndarray, draws: Bootstrap, names: Sequence[str] = _RANKED
) -> dict[str, Sampled]:
    if len(score) < 2 or not np.isfinite(score).all():
        return {name: draws.nothing() for name in names}
    order = Concordance(score, rating)
    return {name: draws.figure(getattr(order, name), image) for name in names}


def near_misses(held: HeldOut, score: np.ndarray, draws: Bootstrap) -> Sampled:
    """How often a caption that fits scores above itself with one word changed; `score` of every row [N]."""
    right, wrong = answered(held, held.kind(NEAR_MISS))
    return _preference(score, right, wrong, held.image, draws)


def _agreement(held: HeldOut, judged: Judged, draws: Bootstrap, rows: np.ndarray) -> dict[str, Any]:
    """Preference accuracy of every scorer on some of the comparisons."""
    better, worse = judged.better[rows], judged.worse[rows]
    return {name: _preference(held.scores[name], better, worse, held.image, draws).as_dict() for name in SCORERS}


def _criterion(name: str, held: HeldOut, data: TrainingData, draws: Bootstrap) -> dict[str, Any]:
    """Tau-c with the single ratings of one criterion: of every scorer and of the criterion's own head."""
    judged = Judged(held, data, (name,))
    image = held.image[judged.rated]
    scores = {**{scorer: held.scores[scorer] for scorer in SCORERS}, "criterion_head": held.scores[name]}
    return {
        scorer: _correlations(score[judged.rated], judged.rating, image, draws, ("tau_c",))["tau_c"].as_dict()
        for scorer, score in scores.items()
    }


def _against_rest(judged: Judged, agreement: Mapping[str, Any], draws: Bootstrap) -> dict[str, Any]:
    """Each labeler as a scorer of what the others say: the mark that one more person would reach.

    `tau_c` and `spearman` hold the labeler's single ratings against the mean of the others' of the same
    caption; `agreement` counts comparisons that both decided.
    """
    found: dict[str, Any] = {name: {"agreement": estimate} for name, estimate in agreement.items()}
    rows = judged.rated
    sums = np.bincount(rows, weights=judged.rating, minlength=len(judged.held.rows))
    counts = np.bincount(rows, minlength=len(judged.held.rows))
    for name in np.unique(judged.labeler).tolist():
        mine = (judged.labeler == name) & (counts[rows] > 1)
        at, rating = rows[mine], judged.rating[mine]
        rest = (sums[at] - rating) / (counts[at] - 1)
        ranked = _correlations(rest, rating, judged.held.image[at], draws, ("tau_c", "spearman"))
        found.setdefault(name, {}).update({figure: value.as_dict() for figure, value in ranked.items()})
    return found


def _calibration(probabilities: np.ndarray, judged: Judged, draws: Bootstrap) -> dict[str, Any]:
    """How often people say yes where the model says so: expected calibration error and reliability bins."""
    predicted = probabilities[judged.rated]
    if not len(predicted) or not np.isfinite(predicted).all():
        return {"ece": draws.nothing().as_dict(), "bins": []}
    said = (judged.rating >= MIDPOINT).astype(np.float64)
    error, bins = reliability(predicted, said, judged.held.image[judged.rated], draws)
    return {"ece": error.as_dict(), "bins": [entry.as_dict() for entry in bins]}


def _across_images(held: HeldOut, judged: Judged, draws: Bootstrap) -> dict[str, Any]:
    """The reward's separation within and across images; see `reward.metrics.across_images`."""
    score = held.scores["reward"]
    right, wrong = held.right(), held.kind(MISMATCHED)
    both = np.concatenate([right, wrong])
    return {
        "matched": _separation(score[both], np.arange(len(both)) < len(right), held.image[both], draws),
        "human": _separation(score[judged.rated], judged.rating >= MIDPOINT, held.image[judged.rated], draws),
    }


def _separation(score: np.ndarray, upper: np.ndarray, image: np.ndarray, draws: Bootstrap) -> dict[str, Any]:
    """AUC of upper against lower rows of one image, of all images, and the share of AUC - 1/2 that is left."""
    across = cross_auc(score, upper, image, draws)
    within = draws.nothing()
    if across.n:
        wins, owner = within_groups(score, upper, image)
        within = draws.figure(mean_of(wins), owner)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = (across.draws - 0.5) / (within.draws - 0.5)
        value = float(np.float64(across.value - 0.5) / (within.value - 0.5))
    share = Sampled(value, kept, across.n)
    return {"within": within.as_dict(), "across": across.as_dict(), "kept": share.as_dict()}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
