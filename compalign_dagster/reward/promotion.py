"""The gate between a trained model and the model in force.

It asks two things of held-out figures: that the model agrees with people better than chance, beyond
its interval, and that its rewards compare across images, because a global cut relies on that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gate:
    """Least lower bounds of the 95 % intervals."""

    min_preference_accuracy: float = 0.5
    min_cross_image_auc: float = 0.6


def claims(metrics: Mapping[str, Any], gate: Gate | None = None) -> list[tuple[str, bool, str]]:
    """What the gate asks, whether it holds, and why not (or the figure): one entry per condition."""
    gate = gate or Gate()
    found = []
    for name, least, meaning in (
        ("preference_accuracy", gate.min_preference_accuracy, "agreement with people"),
        ("cross_image_auc", gate.min_cross_image_auc, "calibration across images"),
    ):
        refusal = _below(metrics, name, least, meaning)
        found.append((f"{meaning}: {name} above {least:g}", refusal is None, refusal or _figure(metrics[name])))
    stuck = bool(metrics.get("validation_stuck_at_ln2"))
    why = "The validation loss stayed at ln 2: the model does not tell captions apart."
    return [*found, ("tells captions apart", not stuck, why if stuck else "validation loss away from ln 2")]


def judge(metrics: Mapping[str, Any], gate: Gate | None = None) -> list[str]:
    """Why this model may not be promoted, one sentence each; empty when it may."""
    return [why for _, holds, why in claims(metrics, gate) if not holds]


def _figure(estimate: Mapping[str, Any]) -> str:
    value, low, high = (f"{estimate[name]:.3f}" for name in ("value", "low", "high"))
    return f"{value}, 95 % interval {low} to {high}, n = {estimate['n']}"


def _below(metrics: Mapping[str, Any], name: str, least: float, meaning: str) -> str | None:
    estimate = metrics.get(name) or {}
    low = estimate.get("low")
    if low is None:
        return f"No held-out {name} ({meaning}) was measured."
    if not low > least:
        return (
            f"Held-out {name} ({meaning}) is {estimate['value']:.3f} with a 95 % interval from {low:.3f} "
            f"(n = {estimate['n']}); above {least:g} is needed."
        )
    return None
