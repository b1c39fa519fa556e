"""The cuts in force: from which reward on each budget of the current filtered dataset keeps its pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compalign_dagster.selection import current
from compalign_dagster.selection.policy import REST
from compalign_dagster.store import Store


@dataclass(frozen=True)
class Cuts:
    """By budget, under one model and policy. -inf where every eligible pair is kept, inf where none is."""

    model_version: str
    policy: Mapping[str, Any]
    by_budget: Mapping[str, float]

    def of(self, corpus: str) -> float | None:
        """The least reward of a kept pair of this corpus; None where nothing was decided for it."""
        return self.by_budget.get(corpus, self.by_budget.get(REST))


def cuts_in_force(store: Store) -> Cuts | None:
    """Those of the dataset that readers use; None before the first, or where it does not say."""
    dataset = current.read(store)
    if dataset is None or "budgets" not in dataset.facts:
        return None
    by_budget = {row["budget"]: _cut(row) for row in dataset.facts["budgets"]}
    return Cuts(dataset.facts["model_version"], dataset.facts["policy"], by_budget)


def _cut(row: Mapping[str, Any]) -> float:
    if row["short"]:
        return -math.inf
    return math.inf if row["cut"] is None else float(row["cut"])
