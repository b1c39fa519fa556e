"""Whether a reward can be had without looking at the picture, or by looking at the wrong thing in it.

What belongs here: the checks, each a share with its interval that must lie above a mark. What does not:
scoring the rows (`held_out.py`), and whether rewards compare across images (`reward.metrics`).

A check that cannot be measured fails: nothing was shown. Neither do fewer than LEAST_IMAGES images show anything:
all of a few may be right by chance, and their interval then has no width. What a failure costs a crawl:

- shuffled_words: the caption must beat the same words in another order. A bag of words ties and fails: such a
  model keeps lists of keywords and garbled text as if they were sentences.
- fluent_wrong: the plainest caption that fits must beat the longest of other images' best captions. A model
  that fails keeps what is well written, whatever the picture shows.
- length_matched: preference accuracy on comparisons whose captions differ by less than a tenth in length. A
  model that fails here and passes elsewhere counts letters.
- text_on_blank, text_on_photo: the caption with its own photo must beat the same caption written on a blank
  page, and on a banner over another photo. A model that fails keeps pictures of text and watermarks.
"""

from typing import Any

import numpy as np

from compalign_dagster.evaluation.held_out import MISMATCHED, ON_BLANK, ON_PHOTO, SHUFFLED, HeldOut
from compalign_dagster.statistics import Bootstrap, mean_of

LEAST = 0.5  # chance; the interval must lie above it
LEAST_IMAGES = 8  # that answer a check; all of so many are right by chance once in 256 times
LENGTH_TOLERANCE = 0.1
_MEANINGS = {
    "shuffled_words": "the caption beats the same words in another order",
    "fluent_wrong": "a plain caption that fits beats the longest caption of other images",
    "length_matched": "the preferred caption wins where both are about equally long",
    "text_on_blank": "the photo beats a blank page with the caption written on it",
    "text_on_photo": "the photo beats another photo with the caption written on it",
}


def shortcuts(held: HeldOut, better: np.ndarray, worse: np.ndarray, draws: Bootstrap) -> dict[str, dict[str, Any]]:
    """By check: `figure` (estimate), `least`, `passed` (the interval lies above), `images`, `least_images`, `meaning`.

    The figure of a check that fewer images than the least answer is not measured.
    `better` and `worse` [P] are rows of `held`: the untied comparisons.
    """
    length = np.array([len(row.text) for row in held.rows], np.float64)
    close = np.abs(length[better] - length[worse]) < LENGTH_TOLERANCE * np.maximum(length[better], length[worse])
    pairs = {
        "shuffled_words": answered(held, held.kind(SHUFFLED)),
        "fluent_wrong": answered(held, _longest(held, held.kind(MISMATCHED))),
        "length_matched": (better[close], worse[close]),
        "text_on_blank": answered(held, held.kind(ON_BLANK)),
        "text_on_photo": answered(held, held.kind(ON_PHOTO)),
    }
    return {name: _check(name, held, right, wrong, draws) for name, (right, wrong) in pairs.items()}


def _check(name: str, held: HeldOut, right: np.ndarray, wrong: np.ndarray, draws: Bootstrap) -> dict[str, Any]:
    score = held.scores["reward"]
    figure = draws.nothing()
    images = len(np.unique(held.image[right]))
    if images >= LEAST_IMAGES and np.isfinite(score[right]).all() and np.isfinite(score[wrong]).all():
        figure = draws.figure(mean_of((score[right] > score[wrong]).astype(np.float64)), held.image[right])
    estimate = figure.as_dict()
    low = estimate["low"]
    return {
        "figure": estimate,
        "least": LEAST,
        "passed": low is not None and low > LEAST,
        "images": images,
        "least_images": LEAST_IMAGES,
        "meaning": _MEANINGS[name],
    }


def answered(held: HeldOut, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The right captions that these rows must lose to, and the rows, where there is one."""
    place = {(row.image, row.text): at for at, row in enumerate(held.rows) if row.kind not in (ON_BLANK, ON_PHOTO)}
    found = [(place[held.rows[at].image, held.rows[at].answers], at) for at in rows if held.rows[at].answers]
    right, wrong = np.array(found, np.int64).reshape(-1, 2).T
    return right, wrong


def _longest(held: HeldOut, rows: np.ndarray) -> np.ndarray:
    """Of each image the longest of these rows."""
    best: dict[int, int] = {}
    for at in rows.tolist():
        row = held.rows[at]
        if row.image not in best or len(row.text) > len(held.rows[best[row.image]].text):
            best[row.image] = at
    return np.array(sorted(best.values()), np.int64)
