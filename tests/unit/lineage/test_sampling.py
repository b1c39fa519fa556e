import hashlib

import numpy as np
import pytest

from compalign_dagster.lineage.sampling import bound, chance, drawn
from compalign_dagster.statistics import most_wrong

TRIALS, ROWS, SHARE = 200, 300_000, 0.01


def data_version(trial: int) -> str:
    return hashlib.sha256(str(trial).encode()).hexdigest()


def caught(trial: int, draw=drawn) -> bool:
    """Whether a sample at the stated size holds one of 0.2 % of rows that somebody altered."""
    altered = np.random.default_rng(trial).choice(ROWS, ROWS // 500, replace=False)
    return not set(altered.tolist()).isdisjoint(draw(data_version(trial), "batch-00001", ROWS, SHARE))


def test_altering_two_in_a_thousand_rewards_is_caught_in_99_of_100_trials():
    assert sum(caught(trial) for trial in range(TRIALS)) >= 0.99 * TRIALS
    assert chance(0.002, round(ROWS * SHARE)) >= 0.99
    assert chance(0.002, 2301) >= 0.99 > chance(0.002, 2300)


def test_the_planted_bug_of_a_tenth_of_the_sample_turns_this_red():
    def too_few(seed: str, part: str, rows: int, share: float) -> list[int]:
        return drawn(seed, part, rows, share / 10)

    assert sum(caught(trial, too_few) for trial in range(TRIALS)) < 0.99 * TRIALS


def test_a_sample_is_the_same_for_everybody_and_another_one_for_another_seed_or_part():
    first = drawn("a", "batch-00001", 1000, 0.1)
    assert first == drawn("a", "batch-00001", 1000, 0.1)
    assert first == sorted(set(first))
    assert len(first) == 100
    assert first != drawn("b", "batch-00001", 1000, 0.1)
    assert first != drawn("a", "batch-00002", 1000, 0.1)


def test_every_row_is_as_likely_as_any_other():
    counts = np.zeros(50)
    for trial in range(2000):
        counts[drawn(data_version(trial), "x", 50, 0.2)] += 1
    assert counts.sum() == 2000 * 10
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


@pytest.mark.parametrize(("rows", "share", "count"), [(10, 0, 0), (10, 1, 10), (10, 0.01, 1), (0, 0.5, 0), (7, 0.5, 4)])
def test_shares_are_rounded_up_and_none_and_all_are_legal(rows, share, count):
    assert len(drawn("seed", "x", rows, share)) == count


def test_a_share_beyond_one_is_refused():
    with pytest.raises(ValueError, match="share"):
        drawn("seed", "x", 10, 1.5)


def test_the_bound_is_clopper_and_pearsons():
    assert most_wrong(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert most_wrong(1, 100) == pytest.approx(0.0466, abs=1e-4)
    assert most_wrong(5, 5) == 1
    assert most_wrong(0, 0) == 1
    assert bound(0, 300, 30_000, "pairs") == "0 of 300 pairs wrong, so at most 0.99 % of 30,000 at 95 %"
    assert bound(0, 30, 30, "pairs") == "0 of 30 pairs wrong: all of them were looked at"
