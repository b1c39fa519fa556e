import json
import math
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from compalign_dagster.statistics import (
    Bootstrap,
    Concordance,
    Estimate,
    bootstrap_mean,
    bootstrap_over,
    kendall_tau_b,
    mean_of,
    reliability,
    spearman,
    within_groups,
)


def auc(positive, negative):
    """The chance that a positive scores above a negative, a tie counting half."""
    pairs = (positive[:, None] > negative[None]) + (positive[:, None] == negative[None]) / 2
    return pairs.mean() if pairs.size else math.nan


def test_nan_has_no_rank():
    for figure in (kendall_tau_b, spearman, Concordance):
        with pytest.raises(ValueError, match="NaN"):
            figure(np.array([1.0, math.nan]), np.array([1.0, 2.0]))


def test_nothing_measured_is_nan_and_becomes_null_in_json():
    empty = bootstrap_over(np.array([]), lambda rows: 1.0, seed=0)
    assert empty.as_dict() == {"value": None, "low": None, "high": None, "n": 0}
    json.dumps(empty.as_dict(), allow_nan=False)


def test_rank_correlations_agree_with_hand_counts():
    human, model = np.array([1, 2, 2, 3]), np.array([0.1, 0.5, 0.4, 0.3])
    # comparable pairs: 5; concordant (1,2a) (1,2b) (1,3), discordant (2a,3) (2b,3)
    assert kendall_tau_b(human, model) == pytest.approx((3 - 2) / math.sqrt(5 * 6))
    assert Concordance(model, human).tau_c(np.ones((1, 4)))[0] == pytest.approx(2 * (3 - 2) / (16 * (2 / 3)))
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


def long_form(seed, *, images=12, captions=4, labelers=3, levels=4):
    """Scores, ratings of few levels and images of rows in long form, with ties among scores."""
    generator = np.random.default_rng(seed)
    score = np.repeat(np.round(generator.normal(size=images * captions), 1), labelers)
    rating = np.clip(np.round(score + generator.normal(size=len(score)) + levels / 2), 1, levels)
    return score, rating, np.repeat(np.arange(images), captions * labelers)


@given(st.integers(0, 1000), st.integers(2, 5))
def test_the_fast_rank_correlations_are_scipys_with_rows_repeated_as_often_as_they_weigh(seed, levels):
    score, rating, _ = long_form(seed, levels=levels)
    times = np.random.default_rng(seed).integers(0, 3, len(score))
    rows = np.repeat(np.arange(len(score)), times)
    order = Concordance(score, rating)
    weights = times[None, :].astype(float)
    tau_c = partial(kendalltau, variant="c")
    for name, slow in (("tau_b", kendalltau), ("tau_c", tau_c), ("spearman", spearmanr)):
        expected = slow(score[rows], rating[rows]).statistic
        assert getattr(order, name)(weights)[0] == pytest.approx(expected, nan_ok=True), name


@given(st.integers(0, 1000))
def test_the_fast_auc_counts_every_pair(seed):
    score, rating, _ = long_form(seed)
    found = Concordance(score, rating >= 3).auc(np.ones((1, len(score))))[0]
    assert found == pytest.approx(auc(score[rating >= 3], score[rating < 3]), nan_ok=True)


def test_ratings_of_many_levels_lose_almost_nothing():
    generator = np.random.default_rng(0)
    score = generator.normal(size=400)
    rating = score + generator.normal(size=400)
    fast = Concordance(score, rating).tau_b(np.ones((1, 400)))[0]
    assert fast == pytest.approx(kendall_tau_b(score, rating), abs=0.02)


def test_an_interval_of_tau_over_images_is_that_of_drawing_the_rows():
    score, rating, image = long_form(3, images=40)
    fast = Bootstrap(40, seed=5).figure(Concordance(score, rating).tau_c, image).estimate()
    slow = bootstrap_over(
        image, lambda rows: kendalltau(score[rows], rating[rows], variant="c").statistic, resamples=400, seed=5
    )
    assert fast.value == pytest.approx(slow.value)
    assert fast.n == slow.n == len(score)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.02)


def test_a_difference_of_two_scorers_is_surer_than_either_because_it_is_paired():
    score, rating, image = long_form(1, images=60)
    nearly = score + np.random.default_rng(2).normal(size=len(score)) * 0.02
    draws = Bootstrap(60, seed=0)
    one, other = (draws.figure(Concordance(values, rating).tau_c, image) for values in (score, nearly))
    lead, alone = one.minus(other).estimate(), one.estimate()
    assert lead.value == pytest.approx(one.value - other.value)
    assert lead.high - lead.low < (alone.high - alone.low) / 3


def test_a_scorer_without_rows_is_undefined_and_so_is_any_lead_over_it():
    draws = Bootstrap(5, seed=0)
    some = draws.figure(mean_of(np.ones(5)), np.arange(5))
    assert some.minus(draws.nothing()).as_dict() == {"value": None, "low": None, "high": None, "n": 0}


def test_a_thousand_draws_of_eight_thousand_ratings_take_seconds():
    score, rating, image = long_form(0, images=500, captions=6)
    started = time.process_time()
    Bootstrap(500, seed=0).figure(Concordance(score, rating).tau_c, image)
    assert len(score) == 9000
    assert time.process_time() - started < 5


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2)), min_size=1, max_size=25))
def test_pairs_within_groups_are_every_upper_with_every_lower_of_its_group(rows):
    score, upper, group = (np.array(column) for column in zip(*rows, strict=True))
    wins, owner = within_groups(score, upper.astype(bool), group)
    expected = [
        ((one[0] > other[0]) + (one[0] == other[0]) / 2, one[2])
        for one in rows for other in rows if one[1] and not other[1] and one[2] == other[2]
    ]  # fmt: skip
    assert sorted(zip(wins, owner, strict=True)) == sorted(expected)


def test_what_is_predicted_honestly_has_a_small_calibration_error_and_what_is_boasted_a_large_one():
    generator = np.random.default_rng(0)
    truth = generator.uniform(0.05, 0.95, 4000)
    happened = (generator.uniform(size=4000) < truth).astype(float)
    group, draws = np.arange(4000) % 400, Bootstrap(400, seed=1)
    honest, bins = reliability(truth, happened, group, draws)
    boasting, _ = reliability(np.where(truth > 0.5, 0.99, 0.01), happened, group, draws)
    assert honest.value < 0.03
    assert boasting.low > 0.15
    assert sum(entry.n for entry in bins) == 4000
    assert all(entry.low <= entry.predicted <= entry.high for entry in bins)
    assert sum(entry.observed.low <= entry.predicted <= entry.observed.high for entry in bins) >= 8


def test_equal_predictions_share_one_bin():
    error, bins = reliability(np.full(10, 0.3), np.array([1.0] * 3 + [0.0] * 7), np.arange(10), Bootstrap(10, seed=0))
    assert len(bins) == 1
    assert error.value == pytest.approx(0)
