"""The cascade in force: a decided fact in the store, with who put it there and why; and what workers need of it.

A cascade is planned for one promoted model. Under another one it is not applied. What does not belong here:
planning (`cascade.py`), scoring with two models (`cascaded.py`).
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from compalign_dagster import decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.shards import corpus_of
from compalign_dagster.decisions import Decision
from compalign_dagster.store import Store

DECISION = "cascade"
AUDIT = 0.01  # share of what is turned down that is scored all the same

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cascade:
    """Which model may turn pairs down, and below which of its rewards. A corpus without a threshold is scored whole."""

    model: str  # key of the cheap model's manifest in the store
    model_version: str
    reject_below: Mapping[str, float]  # by corpus
    audit: float = AUDIT

    def as_config(self) -> dict[str, Any]:
        """What it adds to the configuration that changes bytes."""
        return {"cascade": {**asdict(self), "reject_below": dict(self.reject_below)}}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Cascade | None":
        """The cascade of a configuration that changes bytes; None where there is none."""
        found = config.get("cascade")
        return cls(**found) if found else None


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that changes bytes, without its cascade."""
    return {name: value for name, value in config.items() if name != "cascade"}


def turns_down(config: Mapping[str, Any], shard: str) -> bool:
    """Whether the cascade of a configuration, where it has one, may turn down pairs of a shard of this name."""
    cascade = Cascade.of(config)
    return cascade is not None and corpus_of(shard) in cascade.reject_below


def current(store: Store) -> Decision | None:
    """The newest decision, None before the first. Without a `cascade` in it, none is in force."""
    return decisions.current(store, DECISION)


def adopt_plan(plan: Artifact, audit: float, *, by: str, why: str) -> Decision | None:
    """Put a plan in force, of which this share of the rejects is audited; one that says to use none turns off."""
    report = plan.facts["report"]
    if not report["reject_below"]:
        reasons = "; ".join(f"{name}: {made['reason']}" for name, made in report["plans"].items())
        return turn_off(plan.store, by=by, why=f"{why} ({reasons})")
    cascade = Cascade(report["cheap"], report["cheap_version"], report["reject_below"], audit)
    scores, bound = report["model_version"], plan.manifest["config"]["bound"]
    return adopt(plan.store, cascade, plan, scores=scores, bound=bound, by=by, why=why)


def adopt(store: Store, cascade: Cascade, plan: Artifact, *, scores: str, bound: float, by: str, why: str) -> Decision:
    """Put a cascade in force for the model of version `scores`; nothing is written when it is already.

    `bound` is the share of decisions that it may change, which audits hold it to.
    """
    said = {
        "action": "adopt",
        "plan": plan.manifest_key,
        "plan_sha256": plan.manifest_sha256,
        "model_version": scores,
        "bound": bound,
        **cascade.as_config(),
    }
    return _decided(store, said, by, why)


def turn_off(store: Store, *, by: str, why: str) -> Decision | None:
    """Put no cascade in force; nothing is written when none is."""
    return _decided(store, {"action": "off"}, by, why) if current(store) else None


class Applied(NamedTuple):
    """What scoring uses."""

    cascade: Cascade | None
    said: str  # why that cascade, or why none
    bound: float | None = None  # share of decisions that the cascade's plan lets it change


def applied(store: Store, model_version: str) -> Applied:
    """The cascade that scoring with this model uses."""
    now = current(store)
    if now is None or now.value["action"] == "off":
        return Applied(None, "none is in force")
    if now.value["model_version"] != model_version:
        planned = now.value["model_version"][:12]
        said = f"decision {now.version} is not applied: it was planned for model {planned}, not {model_version[:12]}"
        log.warning("cascade: %s; plan one for this model, or turn it off", said)
        return Applied(None, said)
    return Applied(Cascade.of(now.value), f"decision {now.version} of {now.decided}", now.value["bound"])


def _decided(store: Store, said: dict[str, Any], by: str, why: str) -> Decision:
    def choose(now: Decision | None) -> dict[str, Any] | None:
        same = now is not None and {name: now.value.get(name) for name in said} == said
        return None if same else {**said, "by": by, "why": why}

    found = decisions.move(store, DECISION, choose)
    assert found is not None, "a decision is made where there is none"
    return found
