"""What to ask next: the pairs that say most, spread over images, no question twice."""

import numpy as np
import pytest

from compalign_dagster.reward import acquisition
from compalign_dagster.reward.acquisition import most_informative


def pool(pairs=60, features=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(pairs, features)), rng.normal(size=pairs), np.repeat(np.arange(pairs // 4), 4)


def left(chosen, differences, rewards, factor):
    """The covariance after these answers, in closed form."""
    p = 1 / (1 + np.exp(-rewards[chosen]))
    rows = differences[chosen]
    return np.linalg.inv(np.linalg.inv(factor @ factor.T) + (rows * (p * (1 - p))[:, None]).T @ rows)


def test_each_choice_is_the_one_that_lowers_the_doubt_most_given_those_before():
    differences, rewards, image = pool()
    factor = np.diag([3.0, 1.0, 1.0, 0.5, 0.1])
    chosen = most_informative(differences, rewards, image, factor, count=6, most_per_image=4)
    for at in range(6):
        before = list(chosen[:at])
        options = {
            place: np.linalg.slogdet(left([*before, place], differences, rewards, factor))[1]
            for place in range(len(rewards))
            if place not in before
        }
        assert options[int(chosen[at])] == pytest.approx(min(options.values()), abs=1e-9), at


def test_no_pair_is_asked_twice_and_no_image_too_often():
    differences, rewards, image = pool()
    for most in (1, 2):
        chosen = most_informative(differences, rewards, image, np.eye(5), count=1000, most_per_image=most)
        assert len(set(chosen.tolist())) == len(chosen) == 15 * most
        assert np.bincount(image[chosen]).max() == most


def test_equals_are_taken_in_an_order_of_the_seed():
    differences, rewards, image = np.ones((40, 2)), np.zeros(40), np.arange(40)
    first, again, other = (
        most_informative(differences, rewards, image, np.eye(2), count=5, seed=seed).tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_foregone_answer_and_a_pair_without_difference_come_last():
    differences = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    rewards, image = np.array([500.0, 0.5, 0.0]), np.arange(3)
    assert most_informative(differences, rewards, image, np.eye(2), count=3)[0] == 1


def test_an_empty_pool_and_a_posterior_that_was_not_fitted():
    nothing = np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64)
    assert len(most_informative(*nothing, np.eye(2), count=3)) == 0
    with pytest.raises(ValueError, match="not fitted"):
        most_informative(*pool(features=2), np.full((2, 2), np.nan), count=1)


def test_the_planted_bug_of_a_covariance_that_is_never_lowered_asks_the_same_again(monkeypatch):
    monkeypatch.setattr(acquisition, "_after", lambda rows, asked, weight: rows)
    with pytest.raises(AssertionError):
        test_each_choice_is_the_one_that_lowers_the_doubt_most_given_those_before()


def test_the_planted_bug_of_a_choice_by_difference_alone_is_seen(monkeypatch):
    monkeypatch.setattr(acquisition, "_variance_of_answer", lambda rewards: np.ones(len(rewards)))
    with pytest.raises(AssertionError):
        test_each_choice_is_the_one_that_lowers_the_doubt_most_given_those_before()
