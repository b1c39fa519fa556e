"""Soft sampling: who is drawn is a fact of seed, id and reward, and a policy without it is what it was made by."""

import hashlib
from math import sqrt

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from compalign_dagster.selection import policy_file, reasons
from compalign_dagster.selection.policy import Policy, Rules
from compalign_dagster.selection.ranked import build
from compalign_dagster.selection.sampling import Sampling
from tests.conftest import ROOT
from tests.unit.selection.test_ranked import index, reasons_of, scores

COUNT = 4000
IDS = [hashlib.sha256(str(at).encode()).hexdigest()[:32] for at in range(COUNT)]
REWARDS = np.random.default_rng(2).normal(size=COUNT).astype(np.float32).astype(np.float64)
HALF = Sampling(floor=-1.0, full=1.0, seed=7)


def drawn(sampling: Sampling, rewards=REWARDS, ids=IDS) -> set[str]:
    """The keys of the pairs that sampling leaves."""
    given = scores(reward=list(rewards), pair_id=list(ids))
    found = reasons_of(build(given, index(given), Rules(sampling=sampling)).ranked)
    assert set(found.values()) <= {None, reasons.NOT_SAMPLED}
    return {key for key, reason in found.items() if reason is None}


def test_the_number_is_the_one_that_the_documentation_states():
    assert Sampling(floor=0, full=1).number("0" * 32) == 7828956472081652 / 2**53
    assert Sampling(floor=0, full=1, seed=7).number("é") == 1208404147781328 / 2**53


def test_the_documented_query_estimates_the_pairs_above_the_floor():
    page = (ROOT / "docs" / "curating.md").read_text().partition("### Soft sampling")[2]
    policy = policy_file.parse(page.split("```toml")[1].split("```")[0].encode(), "example.toml", toml=True)
    sampling, left = policy.sampling, drawn(policy.sampling)
    kept = pl.DataFrame({"reward": [REWARDS[int(key)] for key in sorted(left)]}, schema={"reward": pl.Float32})
    with duckdb.connect() as connection:
        connection.register("kept", kept.to_arrow())
        ((estimate,),) = connection.sql(page.split("```sql")[1].split("```")[0]).fetchall()
    above = np.array([reward for reward in REWARDS if reward > sampling.floor])
    chance = np.minimum(1, (above - sampling.floor) / (sampling.full - sampling.floor))
    assert abs(estimate - len(above)) <= 4 * sqrt(sum((1 - chance) / chance))
    assert abs(len(left) - len(above)) > 4 * sqrt(sum((1 - chance) / chance)), "the planted bug of no weights"


def test_the_number_can_be_had_by_other_means():
    found = duckdb.sql("select (('0x' || left(sha256('7:' || '" + IDS[0] + "'), 16))::ubigint >> 11) / 2.0**53")
    assert found.fetchall() == [(HALF.number(IDS[0]),)]


@pytest.mark.parametrize(
    ("reward", "chance"), [(-1.5, 0), (-1.0, 0), (-0.75, 0.125), (0.0, 0.5), (0.5, 0.75), (1.0, 1)]
)
def test_the_share_that_is_kept_is_the_chance(reward, chance):
    bound = 4 * sqrt(COUNT * chance * (1 - chance))
    assert abs(len(drawn(HALF, [reward] * COUNT)) - chance * COUNT) <= bound


def test_the_planted_bug_of_a_chance_without_the_floor_is_outside_that_bound():
    kept = sum(HALF.number(each) < (0.5 + 0) / 1.0 for each in IDS)  # reward 0.5, as if floor were 0
    assert abs(kept - 0.75 * COUNT) > 4 * sqrt(COUNT * 0.75 * 0.25)


@given(st.floats(-0.99, 2), st.floats(-0.99, 2))
def test_a_higher_full_keeps_only_what_a_lower_one_kept(one, other):
    low, high = sorted([one, other])
    few, ids = REWARDS[:300], IDS[:300]
    kept = [drawn(HALF.model_copy(update={"full": full}), few, ids) for full in (low, high)]
    assert kept[1] <= kept[0]
    assert kept[0] >= {f"{at:03d}" for at in np.flatnonzero(few >= low)}


def test_copies_with_one_reward_are_drawn_together_and_another_seed_draws_others():
    assert len(drawn(HALF, [0.0] * 9, ["a" * 32] * 9)) in (0, 9)
    other = drawn(HALF.model_copy(update={"seed": 8}))
    assert drawn(HALF) == drawn(HALF) != other
    shared = len(drawn(HALF, [0.0] * COUNT) & drawn(HALF.model_copy(update={"seed": 8}), [0.0] * COUNT))
    assert abs(shared - COUNT / 4) <= 4 * sqrt(COUNT * 3 / 16)


def test_only_pairs_whose_chance_is_open_are_given_a_number(monkeypatch):
    asked, number = [], Sampling.number
    monkeypatch.setattr(Sampling, "number", lambda self, pair_id: asked.append(pair_id) or number(self, pair_id))
    drawn(HALF)
    assert sorted(asked) == sorted(np.array(IDS)[(REWARDS >= -1) & (REWARDS < 1)])


def test_the_floors_come_before_sampling_and_a_pair_without_a_reward_is_rejected():
    given = scores(reward=[-3.0, -1.0, None, 2.0], human_fit=pl.Series([0.9, 0.9, None, 0.1], dtype=pl.Float32))
    rules = Rules(reward_floor=-2.0, floors={"human_fit": 0.5}, sampling=Sampling(floor=0, full=1))
    assert reasons_of(build(given, index(given), rules).ranked) == {
        "000": "reward_floor", "001": "not_sampled", "002": "cascade_reject", "003": "floor"
    }  # fmt: skip


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_policy_without_sampling_is_the_json_of_schema_2_so_that_its_lists_keep_their_keys(version):
    policy = Policy(keep_fraction="0.3", version=version)
    assert "sampling" not in policy.model_dump(mode="json")
    assert list(policy.rules().model_dump()) == [
        "reward_floor", "floors", "languages", "unknown_language", "caption_patterns"
    ]  # fmt: skip
    assert policy.version == 2


def test_a_policy_with_sampling_says_that_older_releases_cannot_read_it():
    policy = Policy(keep_fraction="0.3", sampling=HALF, version=2)
    assert policy.version == 3
    assert Policy.model_validate(policy.model_dump(mode="json")) == policy
    assert policy.rules().sampling == HALF


def test_a_difference_in_sampling_makes_lists_anew():
    found = policy_file.differences(Policy(keep_fraction="0.3"), Policy(keep_fraction="0.3", sampling=HALF))
    told = {item.field: (item.old, item.new, item.remakes_lists) for item in found}
    assert told["sampling"] == (None, {"floor": -1.0, "full": 1.0, "seed": 7}, True)


@pytest.mark.parametrize("wrong", [{"floor": float("nan")}, {"full": float("inf")}, {"full": -1.0}, {"seed": 2**63}])
def test_sampling_that_is_no_rising_chance_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Sampling(**{**HALF.model_dump(), **wrong})
