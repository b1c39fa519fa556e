import json
import math

import numpy as np
import pytest

from compalign_dagster import parquet
from compalign_dagster.annotation.tables import CAPTIONS, COMPARISONS
from compalign_dagster.evaluation.agreement import agreement, labeler_agreement


def comparison(image, better, worse, labeler="l", tie=False):
    return {"image_id": image, "labeler": labeler, "better": better, "worse": worse, "tie": tie}


def comparisons(*rows):
    return parquet.from_rows(list(rows), COMPARISONS)


def captions(**texts):
    """`image_caption="text"`."""
    rows = [
        {"image_id": name[0], "caption_id": name[1], "caption": text, "caption_source": "human"}
        for name, text in texts.items()
    ]
    return parquet.from_rows(rows, CAPTIONS)


def scores(**values):
    return {(name[0], name[1]): value for name, value in values.items()}


TEXTS = captions(ia="xx", ib="xxx", ic="x", ja="xxxx", jb="x")
ROWS = comparisons(
    comparison("i", "a", "b"),
    comparison("i", "a", "c"),
    comparison("i", "b", "c", tie=True),
    comparison("j", "b", "a"),
)


def test_a_scorer_agrees_where_it_prefers_what_people_prefer():
    found = agreement(
        ROWS,
        TEXTS,
        {"reward": scores(ia=3, ib=1, ic=1, ja=0, jb=1), "cosine": scores(ia=0, ib=1, ic=0, ja=0, jb=1)},
    )
    assert found["reward"]["preference_accuracy"]["value"] == 1
    assert found["cosine"]["preference_accuracy"]["value"] == pytest.approx(1 / 3)  # its tie of a and c is wrong
    assert found["reward"]["preference_accuracy"]["n"] == 3  # the labeler's tie is no preference


def test_caption_length_is_always_a_control():
    found = agreement(ROWS, TEXTS, {})
    assert list(found) == ["caption_length"]
    assert found["caption_length"]["preference_accuracy"]["value"] == pytest.approx(1 / 3)


def test_tau_counts_ties_of_both_sides_within_a_ranking():
    found = agreement(ROWS, TEXTS, {"reward": scores(ia=3, ib=2, ic=1, ja=0, jb=1)})
    # image i: 2 concordant of 2 untied by people, 3 untied by the scorer; image j: 1 of 1
    assert found["reward"]["tau_b"]["value"] == pytest.approx((2 / math.sqrt(2 * 3) + 1) / 2)
    assert found["reward"]["tau_b"]["n"] == 2


def test_the_gain_over_a_baseline_is_paired():
    found = agreement(ROWS, TEXTS, {"reward": scores(ia=3, ib=1, ic=1, ja=0, jb=1)})
    gain = found["caption_length"]["reward_minus_this"]
    assert gain["value"] == pytest.approx(2 / 3)
    assert "reward_minus_this" not in found["reward"]


def test_a_scorer_that_lacks_scores_is_left_out():
    found = agreement(ROWS, TEXTS, {"itm": scores(ia=1, ib=math.nan, ic=0, ja=0, jb=0), "cosine": scores(ia=1)})
    assert list(found) == ["caption_length"]


def test_no_judgements_give_figures_of_nothing():
    found = {"scorers": agreement(comparisons(), TEXTS, {}), **labeler_agreement(comparisons())}
    json.dumps(found, allow_nan=False)
    assert found["scorers"]["caption_length"]["preference_accuracy"]["n"] == 0
    assert found["ceiling"] == {"value": None, "low": None, "high": None, "n": 0}


def test_the_ceiling_is_how_often_two_labelers_prefer_the_same():
    rows = comparisons(
        comparison("i", "a", "b", "one"), comparison("i", "a", "b", "two"),
        comparison("i", "b", "a", "three"), comparison("j", "a", "b", "one"),
        comparison("j", "a", "b", "two", tie=True), comparison("k", "a", "b", "one"), comparison("k", "a", "b", "two"),
    )  # fmt: skip
    found = labeler_agreement(rows)
    assert found["ceiling"]["value"] == pytest.approx(2 / 4)
    assert found["ceiling"]["n"] == 4
    assert found["labelers"]["three"]["value"] == 0
    assert found["labelers"]["two"]["value"] == pytest.approx(2 / 3)


def test_a_random_scorer_is_at_chance_within_its_interval():
    generator = np.random.default_rng(4)
    rows = [comparison(str(image), "a", "b") for image in range(300)]
    texts = parquet.from_rows(
        [
            {"image_id": str(image), "caption_id": name, "caption": "x", "caption_source": "human"}
            for image in range(300)
            for name in "ab"
        ],
        CAPTIONS,
    )
    noise = {(str(image), name): float(generator.normal()) for image in range(300) for name in "ab"}
    figure = agreement(comparisons(*rows), texts, {"reward": noise})["reward"]["preference_accuracy"]
    assert figure["low"] < 0.5 < figure["high"]
