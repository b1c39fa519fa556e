"""The gate between a trained model and the model in force.

What belongs here: what held-out figures must say before a model's rewards may decide. What does not:
measuring them (`evaluation/evidence.py`, `comparing.py`), moving the pointer (`promoted.py`).

A figure that was not measured refuses, by name. A bound that every figure meets asks for nothing.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

BASELINES = ("cosine", "itm", "label_free", "caption_length", "text_only")
SHORTCUTS = ("shuffled_words", "fluent_wrong", "length_matched", "text_on_blank", "text_on_photo")
_OF_THE_BACKBONE = ("cosine", "itm", "label_free")  # a backbone may lack these, never the other two
_LEAST_SPREAD = 1e-3

Claim = tuple[str, bool, str]
"""What is asked, whether it holds, and the figure or why not."""


@dataclass(frozen=True)
class Gate:
    """Bounds. Intervals are of 95 %, over held-out images; -1 and 1 ask for nothing."""

    min_images: int = 20  # held out; a handful that is all right or all wrong has an interval of no width
    min_preference_accuracy: float = 0.5  # least lower end
    min_cross_image_auc: float = 0.6  # least lower end
    min_gain: float = 0.0  # least lower end of the reward's preference accuracy minus that of each other scorer
    max_ece: float = 0.15  # greatest expected calibration error; the estimate itself is biased upward
    told: tuple[str, ...] = ()  # shortcut checks that are shown and do not decide


def claims(
    metrics: Mapping[str, Any], gate: Gate | None = None, against: Mapping[str, Any] | None = None
) -> list[Claim]:
    """What the gate asks of a model: one entry per condition.

    `metrics` are those of training, with `evidence`. `against` is `comparing.compare`'s account of the model
    and the promoted one on the same images; None where no model is promoted yet.
    """
    gate = gate or Gate()
    evidence = metrics.get("evidence") or {}
    return [
        _enough(metrics.get("test_images"), gate.min_images),
        _above(metrics, "preference_accuracy", gate.min_preference_accuracy, "agreement with people"),
        _above(metrics, "cross_image_auc", gate.min_cross_image_auc, "tells matched from mismatched across images"),
        _across_images(metrics),
        *_gains(evidence.get("scorers") or {}, gate.min_gain),
        *(_promoted(against, gate) if against is not None else ()),
        _calibrated(evidence.get("calibration") or {}, gate.max_ece),
        *_shortcuts(evidence.get("shortcuts") or {}, gate.told),
        _not_stuck(metrics),
        _rewards_vary(metrics),
    ]


def judge(metrics: Mapping[str, Any], gate: Gate | None = None, against: Mapping[str, Any] | None = None) -> list[str]:
    """Why this model may not be promoted, one sentence each; empty when it may."""
    return [why for _, holds, why in claims(metrics, gate, against) if not holds]


def figure(estimate: Mapping[str, Any], sign: str = "") -> str:
    """An estimate in words."""
    value, low, high = (f"{estimate[name]:{sign}.3f}" for name in ("value", "low", "high"))
    return f"{value}, 95 % interval {low} to {high}, n = {estimate['n']:,}"


def _enough(images: Any, least: int, what: str = "held-out images") -> Claim:
    claim = f"at least {least} {what}"
    if type(images) is not int or images < least:
        return claim, False, f"Only {images or 0} {what}; at least {least} are needed, or intervals mean nothing."
    return claim, True, f"{images:,} images"


def _above(metrics: Mapping[str, Any], name: str, least: float, meaning: str) -> Claim:
    claim = f"{meaning}: {name} above {least:g}"
    estimate = metrics.get(name)
    if not _whole(estimate):
        return claim, False, f"No held-out {name} ({meaning}) was measured."
    if estimate["low"] > least:
        return claim, True, figure(estimate)
    return claim, False, f"Held-out {name} ({meaning}) is {figure(estimate)}; all of it above {least:g} is needed."


def _across_images(metrics: Mapping[str, Any]) -> Claim:
    from compalign_dagster.reward.metrics import across_images

    return "rewards compare across images", *across_images(metrics, beyond_interval=True)


def _gains(scorers: Mapping[str, Any], least: float) -> Iterator[Claim]:
    """The reward against every score that stands beside it, on the same comparisons of the same images."""
    absent = {name for name in _OF_THE_BACKBONE if _absent(scorers.get(name) or {})}
    excused = absent if len(absent) < len(_OF_THE_BACKBONE) else set()  # without any there is nothing to be better than
    for name in sorted({*BASELINES, *scorers} - {"reward"}, key=lambda name: (name not in BASELINES, name)):
        claim = f"agrees with people more than {name}: gain above {least:+g}"
        entry = scorers.get(name) or {}
        if least <= -1:
            yield claim, True, "not asked for"
        elif name in excused:
            yield claim, True, "the backbone has no such score"
        else:
            yield _gain(claim, entry.get("reward_minus_this"), least, name, _unscored(entry))


def _absent(entry: Mapping[str, Any]) -> bool:
    """Whether the backbone has no such score: its figure has no value, and it gave no caption a number.

    A figure that is missing says nothing. One that broke on some captions is not absent.
    """
    own = entry.get("preference_accuracy")
    given = (entry.get("scored") or {}).get("captions")
    return isinstance(own, Mapping) and own.get("value") is None and not given


def _unscored(entry: Mapping[str, Any]) -> str:
    """How many captions a scorer gave no number, in words; nothing where it gave all or was not counted."""
    scored = entry.get("scored") or {}
    captions, of = scored.get("captions"), scored.get("of")
    return f" It is not a number for {of - captions:,} of {of:,} captions." if of and captions < of else ""


def _promoted(against: Mapping[str, Any], gate: Gate) -> Iterator[Claim]:
    claim = f"agrees with people more than the promoted model: gain above {gate.min_gain:+g}"
    if gate.min_gain <= -1:
        yield claim, True, "not asked for"
        return
    other = f"the promoted model {str(against.get('model_version'))[:12]}"
    yield _gain(claim, against.get("gain"), gate.min_gain, other)
    if _whole(against.get("gain")):
        yield _enough(against.get("images"), gate.min_images, "images held out for the promoted model too")


def _gain(claim: str, estimate: Any, least: float, other: str, unscored: str = "") -> Claim:
    if not _whole(estimate):
        return claim, False, f"No gain over {other} on the same held-out images was measured.{unscored}"
    if estimate["low"] > least:
        return claim, True, figure(estimate, "+")
    why = f"Preference accuracy minus that of {other}, on the same held-out images, is {figure(estimate, '+')}"
    return claim, False, f"{why}; all of it above {least:+g} is needed."


def _calibrated(calibration: Mapping[str, Any], most: float) -> Claim:
    claim = f"calibrated: expected calibration error of P(a person says it fits) at most {most:g}"
    estimate = calibration.get("ece")
    if most >= 1:
        return claim, True, "not asked for"
    if not _whole(estimate):
        return claim, False, "No calibration error was measured: no ratings were held out."
    if estimate["value"] <= most:
        return claim, True, figure(estimate)
    return claim, False, f"The expected calibration error is {figure(estimate)}; at most {most:g} is needed."


def _shortcuts(checks: Mapping[str, Any], told: Collection[str]) -> Iterator[Claim]:
    for name in [*SHORTCUTS, *sorted(checks.keys() - set(SHORTCUTS))]:
        check = checks.get(name)
        if check is None:
            yield f"takes no shortcut: {name}", False, f"The shortcut check {name} was not made."
            continue
        passed, found = check.get("passed") is True, _shown(check)
        if name in told:
            yield f"takes no shortcut: {name} (told, does not decide)", True, found
            continue
        why = found if passed else f"The shortcut check {name} ({check.get('meaning') or name}) {found}."
        yield f"takes no shortcut: {name}", passed, why


def _shown(check: Mapping[str, Any]) -> str:
    """A shortcut check's figure, and whether it failed or could not be made."""
    if _whole(check.get("figure")):
        return f"{'' if check.get('passed') is True else 'failed: '}{figure(check['figure'])}"
    least = check.get("least_images")
    few = f": {check['images']} images can show it, at least {least} are needed" if least else ""
    return f"was not measured{few}"


def _not_stuck(metrics: Mapping[str, Any]) -> Claim:
    if metrics.get("validation_stuck_at_ln2"):
        why = "The validation loss stayed at ln 2: the model does not tell captions apart."
        return "tells captions apart", False, why
    return "tells captions apart", True, "validation loss away from ln 2"


def _rewards_vary(metrics: Mapping[str, Any]) -> Claim:
    claim, spread = "rewards vary", metrics.get("reward_spread")
    if spread is None:
        return claim, False, "No reward_spread (standard deviation of held-out rewards) was measured."
    if not spread > _LEAST_SPREAD:
        return claim, False, f"Held-out rewards do not vary: their standard deviation is {spread:.2g}."
    return claim, True, f"standard deviation {spread:.3f}"


def _whole(estimate: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a figure has a value and an interval."""
    ends = ("value", "low", "high")
    return isinstance(estimate, Mapping) and all(isinstance(estimate.get(name), int | float) for name in ends)
