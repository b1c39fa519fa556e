import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.annotation.tables import RANKS
from compalign_dagster.parquet import from_rows
from compalign_dagster.reward.calibration import fit_calibration, human_yes, probability, single_ratings


def test_the_fit_finds_the_curve_that_answers_were_drawn_from():
    generator = np.random.default_rng(0)
    reward = generator.normal(3, 2, 20_000)
    yes = (generator.uniform(size=20_000) < probability(reward, 1.5, -4.0)).astype(float)
    assert fit_calibration(reward, yes) == pytest.approx((1.5, -4.0), abs=0.1)


def test_a_share_of_answers_weighs_as_the_single_answers_do():
    reward = np.array([0.0, 1.0, 2.0])
    shares = fit_calibration(reward, np.array([0.25, 0.5, 1.0]), np.array([4, 2, 3]))
    single = fit_calibration(np.repeat(reward, [4, 2, 3]), np.array([1, 0, 0, 0, 1, 0, 1, 1, 1]))
    assert shares == pytest.approx(single)


def test_answers_that_a_reward_separates_have_a_finite_fit():
    slope, offset = fit_calibration(np.array([-1.0, -0.5, 0.5, 1.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    assert 0 < slope < 100
    assert probability(np.array([0.0]), slope, offset)[0] == pytest.approx(0.5, abs=1e-6)


@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_probabilities_do_not_depend_on_the_scale_of_rewards(scale, shift):
    generator = np.random.default_rng(1)
    reward = generator.normal(size=60)
    yes = (reward + generator.normal(size=60) > 0).astype(float)
    plain = probability(reward, *fit_calibration(reward, yes))
    moved = reward * scale + shift
    assert probability(moved, *fit_calibration(moved, yes)) == pytest.approx(plain, abs=1e-4)


def test_what_cannot_be_fitted_is_nan_and_what_is_no_share_is_refused():
    assert all(map(math.isnan, fit_calibration(np.ones(5), np.array([1.0, 0, 1, 0, 1]))))
    assert all(map(math.isnan, fit_calibration(np.zeros(0), np.zeros(0))))
    assert math.isnan(probability(np.array([1.0]), math.nan, math.nan)[0])
    for reward, yes in (([0.0, math.nan], [0.0, 1.0]), ([0.0, 1.0], [0.0, 1.5])):
        with pytest.raises(ValueError, match="calibration needs"):
            fit_calibration(np.array(reward), np.array(yes))


def test_a_rating_from_the_midpoint_up_is_a_yes():
    def rated(caption, labeler, **given):
        return {"image_id": "i", "caption_id": caption, "labeler": labeler, **given}

    ranks = from_rows(
        [
            rated("a", "l", accuracy=3.0),
            rated("a", "m", accuracy=5.0, vividness=1.0),
            rated("a", "n", accuracy=2.9),
            rated("b", "l", rank=1),
            {**rated("a", "l", accuracy=5.0), "image_id": "another"},
        ],
        RANKS,
    )
    assert human_yes(ranks, {"i"}) == {("i", "a"): (pytest.approx(2 / 3), 3)}
    assert single_ratings(ranks, {"i"}, ["vividness"]) == [("i", "a", "m", 1.0)]
