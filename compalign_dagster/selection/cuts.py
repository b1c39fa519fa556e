"""The cuts of a filtered dataset: from which reward on each of its budgets keeps pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compalign_dagster.artifacts import Artifact
from compalign_dagster.selection import current
from compalign_dagster.selection.policy import REST, Policy
from compalign_dagster.store import Store


@dataclass(frozen=True)
class Cuts:
    """By budget, under one model and policy.

    Where every eligible pair is kept, the policy's floor of rewards, or -inf; inf where none is.
    """

    model_version: str
    policy: Mapping[str, Any]
    by_budget: Mapping[str, float]

    def of(self, corpus: str) -> float | None:
        """The least reward of a kept pair of this corpus; None where nothing was decided for it."""
        return self.by_budget.get(corpus, self.by_budget.get(REST))


def cuts_of(dataset: Artifact) -> Cuts:
    """Those of a filtered dataset."""
    facts = dataset.facts
    policy = Policy.model_validate(facts["policy"])
    floors = [policy.reward_floor, policy.sampling.floor if policy.sampling else None]
    floor = max((found for found in floors if found is not None), default=-math.inf)
    by_budget = {row["budget"]: _cut(row, floor) for row in facts["budgets"]}
    return Cuts(facts["model_version"], facts["policy"], by_budget)


def cuts_in_force(store: Store) -> Cuts | None:
    """Those of the dataset that readers use; None before the first, or where it does not say."""
    dataset = current.read(store)
    return cuts_of(dataset) if dataset is not None and "budgets" in dataset.facts else None


def _cut(row: Mapping[str, Any], floor: float) -> float:
    if row["short"]:
        return floor
    return math.inf if row["cut"] is None else float(row["cut"])
