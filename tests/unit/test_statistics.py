import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.statistics import (
    Estimate,
    auc,
    bootstrap_mean,
    bootstrap_over,
    kendall_tau_b,
    kendall_tau_c,
    preference_accuracy,
    spearman,
)

SMALL = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


def test_a_tie_of_scores_is_a_wrong_preference():
    assert preference_accuracy(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])) == pytest.approx(1 / 3)


@given(SMALL, SMALL)
def test_auc_counts_every_pair_with_ties_as_half(positive, negative):
    pairs = [(p > q) + (p == q) / 2 for p in positive for q in negative]
    assert auc(np.array(positive), np.array(negative)) == pytest.approx(sum(pairs) / len(pairs))


def test_nan_has_no_rank():
    for figure in (preference_accuracy, auc, kendall_tau_b, kendall_tau_c, spearman):
        with pytest.raises(ValueError, match="NaN"):
            figure(np.array([1.0, math.nan]), np.array([1.0, 2.0]))


def test_nothing_measured_is_nan_and_becomes_null_in_json():
    assert math.isnan(auc(np.array([]), np.array([1.0])))
    empty = bootstrap_over(np.array([]), lambda rows: 1.0, seed=0)
    assert empty.as_dict() == {"value": None, "low": None, "high": None, "n": 0}
    json.dumps(empty.as_dict(), allow_nan=False)


def test_rank_correlations_agree_with_hand_counts():
    human, model = np.array([1, 2, 2, 3]), np.array([0.1, 0.5, 0.4, 0.3])
    # comparable pairs: 5; concordant (1,2a) (1,2b) (1,3), discordant (2a,3) (2b,3)
    assert kendall_tau_b(human, model) == pytest.approx((3 - 2) / math.sqrt(5 * 6))
    assert kendall_tau_c(human, model) == pytest.approx(2 * (3 - 2) / (16 * (2 / 3)))
    assert spearman(human, human * 10) == pytest.approx(1)
    assert math.isnan(kendall_tau_b(human, np.ones(4)))


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    generator, covered = np.random.default_rng(1), 0
    for trial in range(100):
        truth = generator.normal(size=40)  # one offset for each image: rows of an image are not independent
        rows = np.repeat(truth, 5)
        found = bootstrap_mean(rows, np.repeat(np.arange(40), 5), resamples=300, seed=trial)
        covered += found.low <= 0 <= found.high
    assert 85 <= covered <= 100


def test_drawing_images_is_wider_than_drawing_rows_of_dependent_data():
    values = np.repeat(np.random.default_rng(0).normal(size=30), 10)
    by_image = bootstrap_mean(values, np.repeat(np.arange(30), 10), seed=0)
    by_row = bootstrap_mean(values, np.arange(300), seed=0)
    assert by_image.high - by_image.low > 2 * (by_row.high - by_row.low)


def test_the_fast_mean_is_the_cluster_bootstrap_of_the_mean():
    generator = np.random.default_rng(3)
    values, groups = generator.normal(size=200), generator.integers(0, 25, 200)
    slow = bootstrap_over(groups, lambda rows: float(values[rows].mean()), seed=5)
    fast = bootstrap_mean(values, groups, seed=5)
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high))


def test_a_group_is_drawn_whole():
    groups = np.array([7, 3, 7, 3, 9])
    seen = []

    def statistic(rows):
        seen.append(np.bincount(rows, minlength=5))
        return 0.0

    bootstrap_over(groups, statistic, resamples=20, seed=0)
    assert all(count[0] == count[2] and count[1] == count[3] for count in seen)
    assert any((count == 0).any() for count in seen)


def test_the_same_seed_gives_the_same_interval_and_undefined_draws_are_left_out():
    values = np.array([1.0] * 3 + [0.0])

    def undefined_without_a_negative(rows):
        return auc(values[rows], np.zeros(1)) if (values[rows] == 0).any() else math.nan

    first = bootstrap_over(np.arange(4), undefined_without_a_negative, seed=2)
    assert first == bootstrap_over(np.arange(4), undefined_without_a_negative, seed=2)
    assert isinstance(first, Estimate)
    assert math.isfinite(first.low)
