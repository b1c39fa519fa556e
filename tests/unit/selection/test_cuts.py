"""The cut that other stages go by: never below what the policy's floor lets through."""

import math

import pytest

from compalign_dagster import artifacts
from compalign_dagster.selection.cuts import cuts_of
from compalign_dagster.store import LocalStore


@pytest.mark.parametrize(
    ("budget", "floor", "sampled_from", "cut"),
    [
        ({"short": False, "cut": 0.25}, None, None, 0.25),
        ({"short": False, "cut": 0.25}, -1.0, 0.0, 0.25),
        ({"short": False, "cut": None}, -1.0, None, math.inf),
        ({"short": True, "cut": 0.25}, None, None, -math.inf),
        ({"short": True, "cut": 0.25}, -1.0, None, -1.0),
        ({"short": True, "cut": 0.25}, -1.0, 0.0, 0.0),
        ({"short": True, "cut": 0.25}, None, -2.0, -2.0),
        ({"short": True, "cut": None}, 2.0, 0.0, 2.0),
    ],
)
def test_a_budget_that_is_short_goes_down_to_the_floor_of_rewards(tmp_path, budget, floor, sampled_from, cut):
    policy = {"keep_fraction": "0.5", "reward_floor": floor}
    policy |= {} if sampled_from is None else {"sampling": {"floor": sampled_from, "full": 3.0}}
    facts = {"model_version": "m", "policy": policy, "budgets": [{"budget": "*", **budget}]}
    dataset = artifacts.publish(
        LocalStore(tmp_path), "filtered_dataset", "a", {"x": b""}, code_version=1, inputs=[], config={}, facts=facts
    )
    assert cuts_of(dataset).of("web") == cut
