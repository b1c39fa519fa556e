"""The selection policy in force: a decided fact in the store, seeded once from the settings.

The fact is the policy's fields, with `by` and `why` where a person adopted it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compalign_dagster import decisions
from compalign_dagster.errors import InputError
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection.policy import Policy
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store

_NAME = "selection_policy"


@dataclass(frozen=True)
class PolicyInForce:
    """A policy and its number in the history of decisions."""

    policy: Policy
    version: int
    decided: str = ""  # ISO 8601, UTC; empty where nobody has decided yet
    by: str = ""  # who adopted it, where that is known
    why: str = ""


def first_policy(settings: Settings) -> Policy:
    """What the settings ask for, until somebody decides."""
    return Policy(keep_fraction=settings.keep_fraction, per_corpus=dict(settings.keep_per_corpus))


def in_force(store: Store, first: Policy) -> PolicyInForce:
    """The policy in force; `first` becomes it where nobody has decided yet."""
    return _decided(store, lambda now: None if now else first.model_dump(mode="json"))


def in_force_or(store: Store, first: Policy) -> Policy:
    """The policy in force, or `first` where nobody has decided yet; decides nothing."""
    now = decisions.current(store, _NAME)
    return _read(now).policy if now else first


def adopt(store: Store, policy: Policy, reason: Reason | None = None) -> PolicyInForce:
    """Put a policy in force; nothing is written when it already is."""
    value = policy.model_dump(mode="json")
    told = {"by": reason.by, "why": reason.why} if reason else {}
    return _decided(store, lambda now: None if now and _read(now).policy == policy else value | told)


def history(store: Store) -> list[PolicyInForce]:
    """Every policy that was in force, oldest first."""
    return [_read(decision) for decision in decisions.history(store, _NAME)]


def numbered(store: Store, version: int) -> PolicyInForce:
    """The policy of this number; `InputError` where there is none."""
    known = history(store)
    if 1 <= version <= len(known):
        return known[version - 1]
    raise InputError(
        f"policy {version} in {store.url}",
        expected=f"a number from 1 to {len(known)}" if known else "a policy that was decided",
        found="no such policy" if known else "none yet",
        remedy="`compalign policy history` lists them.",
    )


def _decided(store: Store, choose: Callable[[decisions.Decision | None], dict[str, Any] | None]) -> PolicyInForce:
    found = decisions.move(store, _NAME, choose)
    assert found is not None, "a policy is chosen where there is none"
    return _read(found)


def _read(decision: decisions.Decision) -> PolicyInForce:
    fields = dict(decision.value)
    by, why = fields.pop("by", ""), fields.pop("why", "")
    return PolicyInForce(Policy.model_validate(fields), decision.version, decision.decided, by, why)
