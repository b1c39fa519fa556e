"""The selection policy in force: a decided fact in the store, seeded once from the settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    return _decided(store, lambda now: None if now else first)


def in_force_or(store: Store, first: Policy) -> Policy:
    """The policy in force, or `first` where nobody has decided yet; decides nothing."""
    now = decisions.current(store, _NAME)
    return Policy.model_validate(now.value) if now else first


def adopt(store: Store, policy: Policy) -> PolicyInForce:
    """Put a policy in force; nothing is written when it already is."""
    return _decided(store, lambda now: None if now and now.value == policy.model_dump(mode="json") else policy)


def _decided(store: Store, choose: Callable[[decisions.Decision | None], Policy | None]) -> PolicyInForce:
    def value(now: decisions.Decision | None) -> dict[str, Any] | None:
        chosen = choose(now)
        return chosen.model_dump(mode="json") if chosen else None

    found = decisions.move(store, _NAME, value)
    assert found is not None, "a policy is chosen where there is none"
    return PolicyInForce(Policy.model_validate(found.value), found.version)
