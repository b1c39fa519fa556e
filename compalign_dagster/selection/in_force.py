"""The selection policy in force: a decided fact in the store, seeded once from the settings."""

from dataclasses import dataclass

from compalign_dagster import decisions
from compalign_dagster.selection.policy import Policy
from compalign_dagster.store import Store

_NAME = "selection_policy"


@dataclass(frozen=True)
class PolicyInForce:
    """A policy and its number in the history of decisions."""

    policy: Policy
    version: int


def in_force(store: Store, first: Policy) -> PolicyInForce:
    """The policy in force; `first` becomes it where nobody has decided yet."""
    now = decisions.current(store, _NAME)
    if now is None:
        return adopt(store, first)
    return PolicyInForce(Policy.model_validate(now.value), now.version)


def adopt(store: Store, policy: Policy) -> PolicyInForce:
    """Put a policy in force; nothing is written when it already is."""
    now = decisions.current(store, _NAME)
    value = policy.model_dump(mode="json")
    if now is not None and now.value == value:
        return PolicyInForce(policy, now.version)
    decided = decisions.decide(store, _NAME, value, after=now.version if now else 0)
    return PolicyInForce(policy, decided.version)
