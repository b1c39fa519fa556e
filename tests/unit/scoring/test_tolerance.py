import numpy as np
import pytest

from compalign_dagster.scoring.tolerance import difference

REWARDS = np.random.default_rng(0).normal(size=10_000)


def test_equal_rewards_differ_in_nothing():
    found = difference(REWARDS, REWARDS.copy(), 0.3)
    assert (found.correlation, found.changed) == (pytest.approx(1), 0)
    assert found.tolerated


def test_another_scale_of_the_same_order_is_no_difference():
    assert difference(REWARDS, 3 * REWARDS - 1, 0.3).tolerated


def test_a_swap_at_the_cut_changes_two_decisions_and_one_elsewhere_none():
    order = np.argsort(-REWARDS)
    other = REWARDS.copy()
    other[order[[2999, 3000]]] = other[order[[3000, 2999]]]
    assert difference(REWARDS, other, 0.3).changed == pytest.approx(2 / 10_000)
    assert difference(REWARDS, other, 0.1).changed == 0


def test_noise_beyond_the_tolerance_is_not_tolerated():
    noisy = REWARDS + np.random.default_rng(1).normal(0, 0.01, len(REWARDS))
    found = difference(REWARDS, noisy, 0.3)
    assert found.correlation > 0.999
    assert found.changed > 0.001
    assert not found.tolerated, "the decisions tell what the correlation does not"


def test_equal_rewards_at_the_cut_are_kept_by_place():
    assert difference(np.zeros(10), np.zeros(10), 0.3).changed == 0


def test_rewards_of_other_pairs_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        difference(np.zeros(3), np.zeros(2), 0.3)
