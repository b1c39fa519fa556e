"""A cascade's threshold keeps its promise: on the sample, in the crawl it was drawn from, and when audited."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compalign_dagster.errors import InputError
from compalign_dagster.scoring import cascade
from compalign_dagster.scoring.cascade import Drawn, audit, keeps, plan, rejects, wrong_share

FRACTION = 0.1


def crawl(count: int, noise: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Cheap scores and rewards that agree up to `noise`."""
    generator = np.random.default_rng(seed)
    reward = generator.standard_normal(count)
    return reward + noise * generator.standard_normal(count), reward


def drawn(values: tuple[np.ndarray, np.ndarray], size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).permutation(len(values[0]))[:size]
    return values[0][rows], values[1][rows]


samples = st.builds(
    lambda count, noise, levels, holes, seed: _coarse(crawl(count, noise, seed), levels, holes, seed),
    st.integers(1, 3000),
    st.sampled_from([0.0, 0.2, 1.0, 5.0]),
    st.sampled_from([0, 2, 8]),  # 0: no ties
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
fractions = st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.9, 1.0])
bounds = st.sampled_from([0.0, 0.003, 0.01, 0.05, 0.5, 1.0])


def _coarse(
    values: tuple[np.ndarray, np.ndarray], levels: int, holes: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    cheap, reward = (np.round(item * levels) / levels if levels else item for item in values)
    cheap[np.random.default_rng(seed).random(len(cheap)) < holes] = np.nan
    return cheap, reward


@settings(max_examples=80, deadline=None)
@given(samples, fractions, bounds)
def test_a_plan_holds_its_bound_on_its_own_sample_and_rejects_what_it_says(values, fraction, bound):
    cheap, reward = values
    made = plan(cheap, reward, fraction, bound=bound)
    rejected = rejects(cheap, made.reject_below)
    assert made.passes == pytest.approx(1 - rejected.mean())
    assert made.wrong.value == wrong_share(reward, rejected, fraction)
    assert made.wrong.low <= made.wrong.value <= made.wrong.high <= bound
    assert not rejected[np.isnan(cheap)].any()
    assert int((~rejected).sum()) >= round(fraction * len(reward) - 0.5), "enough are left to keep from"
    if made.reject_below is None:
        assert not rejected.any()
        assert made.reason.startswith("not used")


@settings(max_examples=40, deadline=None)
@given(samples, fractions, bounds, bounds)
def test_a_wider_bound_never_rejects_less(values, fraction, one, other):
    narrow, wide = (plan(*values, fraction, bound=bound) for bound in sorted((one, other)))
    assert narrow.passes >= wide.passes


@settings(max_examples=40, deadline=None)
@given(samples, fractions, st.integers(0, 99))
def test_the_order_of_the_sample_does_not_matter(values, fraction, seed):
    rows = np.random.default_rng(seed).permutation(len(values[0]))
    first, second = plan(*values, fraction), plan(values[0][rows], values[1][rows], fraction)
    assert first.reject_below == second.reject_below
    assert first.wrong.high == second.wrong.high


@pytest.mark.parametrize("count", [0, 1, 50, 700])
def test_a_sample_too_small_for_the_bound_promises_nothing(count):
    made = plan(*crawl(count, 0.0), FRACTION, bound=0.01)
    assert made.reject_below is None
    assert made.passes == 1
    assert "too few" in made.reason


def test_pairs_of_one_cheap_score_share_their_fate():
    cheap, reward = crawl(5000, 0.1)
    made = plan(np.round(cheap), reward, FRACTION, bound=0.05)
    rejected = rejects(np.round(cheap), made.reject_below)
    assert rejected.any()
    for value in np.unique(np.round(cheap)):
        assert len(set(rejected[np.round(cheap) == value])) == 1


def test_a_cheap_score_that_knows_nothing_saves_next_to_nothing():
    generator = np.random.default_rng(3)
    made = plan(generator.random(5000), generator.random(5000), FRACTION, bound=0.01)
    assert made.passes > 0.9


def test_a_cheap_score_that_agrees_saves_most_passes():
    assert plan(*crawl(5000, 0.1), FRACTION, bound=0.01).passes < 0.2


def exceeding(*, rounds: int = 200, size: int = 1500, bound: float = 0.01) -> float:
    """Share of samples whose plan changes more decisions of the whole crawl than its bound."""
    whole = crawl(20_000, 0.5, seed=9)
    plans = [plan(*drawn(whole, size, seed), FRACTION, bound=bound) for seed in range(rounds)]
    assert any(made.reject_below is not None for made in plans)
    rejected = [rejects(whole[0], made.reject_below) for made in plans]
    return float(np.mean([wrong_share(whole[1], each, FRACTION) > bound for each in rejected]))


def test_the_promise_holds_in_the_crawl_for_19_of_20_samples():
    assert exceeding() <= 0.05


def test_the_planted_bug_of_believing_the_sample_turns_this_red(monkeypatch):
    believed = lambda count: np.append(np.arange(count) / max(count, 1), 1.0)  # noqa: E731
    monkeypatch.setattr(cascade, "_upper_limits", believed)
    monkeypatch.setattr(cascade, "_certainly_covers", lambda count, fraction, error: round(count * fraction))
    assert exceeding() > 0.05


def shortages(*, rounds: int = 200, size: int = 1000) -> int:
    """Samples whose plan leaves fewer pairs of the crawl than are to be kept; cheap score and reward are one."""
    _, reward = crawl(20_000, 0.0, seed=9)
    plans = [plan(*drawn((reward, reward), size, seed), FRACTION, bound=0.05) for seed in range(rounds)]
    return sum(int((~rejects(reward, made.reject_below)).sum()) < FRACTION * len(reward) for made in plans)


def test_a_perfect_cheap_score_never_leaves_too_few_to_keep_from():
    assert shortages() == 0


def test_the_planted_bug_of_leaving_no_spare_pairs_turns_this_red(monkeypatch):
    monkeypatch.setattr(cascade, "_SHORTAGE", 0.5)
    assert shortages() > 0


def test_exactly_the_wanted_count_is_kept_and_never_a_rejected_pair():
    cheap, reward = crawl(1000, 0.3)
    rejected = cheap < np.quantile(cheap, 0.6)
    reward = np.where(rejected, np.nan, reward)
    kept = keeps(reward, rejected, 100)
    assert kept.sum() == 100
    assert not (kept & rejected).any()
    assert reward[kept].min() >= reward[~kept & ~rejected].max()


def test_equal_rewards_are_kept_in_the_order_of_the_rows():
    assert keeps(np.zeros(4), np.array([True, False, False, False]), 2).tolist() == [False, True, True, False]


def test_too_few_survivors_are_refused_and_not_filled_up():
    with pytest.raises(InputError, match="passed the cascade"):
        keeps(np.zeros(4), np.array([True, True, True, False]), 2)


def test_rejecting_one_pair_to_be_kept_changes_two_decisions():
    reward = np.arange(10.0)
    rejected = np.zeros(10, bool)
    rejected[9] = True
    assert wrong_share(reward, rejected, 0.3) == pytest.approx(0.2)


def test_an_audit_fails_above_the_bound_and_with_too_few_pairs():
    quiet, loud = np.full(2000, -1.0), np.concatenate([np.full(1900, -1.0), np.full(100, 1.0)])
    for rewards, rejected, passes in (
        (quiet, 8000, True),
        (loud, 8000, False),
        (quiet[:50], 8000, False),
        (quiet[:0], 8000, False),
        (quiet[:0], 0, True),
    ):
        assert audit([Drawn.of(rewards, 0.0, rejected)], pairs=10_000).passed is passes


def test_each_part_is_weighed_by_what_it_stands_for_however_much_of_it_was_audited():
    """A thousand rejects of which all are wrong hide behind nine thousand that were audited ten times as closely."""
    dense, thin = Drawn(9000, 900, 0), Drawn(1000, 10, 10)
    found = audit([dense, thin], pairs=20_000)
    assert found.wrong.value == pytest.approx(2 * 1000 / 20_000)
    assert found.wrong.low > 0.01
    assert found.wrong.n == 910
    assert audit([dense], pairs=20_000).wrong.high < found.wrong.high


def test_the_planted_bug_of_pooling_parts_that_were_audited_unlike_turns_this_red():
    pooled = audit([Drawn(10_000, 910, 10)], pairs=20_000)
    assert pooled.wrong.high < 2 * 1000 / 20_000, "what is really wrong lies outside of the pooled interval"


def test_the_interval_of_a_sum_is_wider_than_the_sum_of_intervals_that_each_may_fail():
    part = Drawn(500, 100, 1)
    assert audit([part, part], pairs=1000).wrong.high > audit([Drawn(1000, 100, 1)], pairs=1000).wrong.high


def test_more_rejects_than_pairs_are_refused():
    with pytest.raises(InputError, match="audit"):
        audit([Drawn(3, 0, 0)], pairs=2)


def test_an_audit_finds_a_crawl_that_is_not_the_one_planned_for():
    cheap, reward = crawl(50_000, 0.3)
    made = plan(*drawn((cheap, reward), 3000, 1), FRACTION)
    fooled = np.random.default_rng(2).permutation(cheap)  # as if the cheap scorer had broken since
    for scores, passes in ((cheap, True), (fooled, False)):
        rejected = rejects(scores, made.reject_below)
        cut = reward[keeps(reward, rejected, 5000)].min()
        audited = np.random.default_rng(3).permutation(reward[rejected])[:4000]
        assert audit([Drawn.of(audited, cut, int(rejected.sum()))], pairs=50_000).passed is passes


@pytest.mark.parametrize(
    ("cheap", "reward", "fraction", "bound"),
    [([0.0], [np.nan], 0.1, 0.1), ([0.0, 1.0], [0.0], 0.1, 0.1), ([0.0], [0.0], 1.1, 0.1), ([0.0], [0.0], 0.1, -1)],
)
def test_what_cannot_be_planned_on_is_refused(cheap, reward, fraction, bound):
    with pytest.raises(InputError):
        plan(np.array(cheap), np.array(reward), fraction, bound=bound)


def test_an_audit_of_rewards_that_are_no_numbers_is_refused():
    with pytest.raises(InputError, match="audit"):
        Drawn.of(np.array([np.nan]), 0.0, 1)
    with pytest.raises(InputError, match="audit"):
        Drawn.of(np.array([0.0]), np.nan, 1)


def test_a_plan_is_plain_values():
    import json

    assert json.loads(json.dumps(plan(*crawl(2000, 0.1), FRACTION).as_dict()))["fraction"] == FRACTION
