"""What figures with intervals say, in plain words, and no more than they say."""

from collections.abc import Mapping
from typing import Any

_BASELINES = {
    "cosine": "image-text cosine",
    "itm": "image-text matching",
    "label_free": "the best score without labels",
    "caption_length": "caption length",
}
_RIVALS = {
    "everything": "everything",
    "random": "a random subset of the same size",
    "cosine": "the cosine-filtered subset",
}
_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


def agreement(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence or two on the reward's agreement with people against chance and the best baseline."""
    reward = (figures.get("reward") or {}).get("preference_accuracy")
    if not measured(reward):
        return "Agreement with people was not measured."
    assert reward is not None
    said = f"The reward prefers what people preferred in {share(reward)} of {reward['n']:,} "
    said += "held-out comparisons"
    if reward["low"] > 0.5:
        said += ", which is above chance."
    elif reward["high"] < 0.5:
        said += ", which is below chance: it orders captions the wrong way round."
    else:
        said += "; the interval includes 50 %, so this is not told apart from chance."
    rivals = [name for name in _BASELINES if measured((figures.get(name) or {}).get("preference_accuracy"))]
    if not rivals:
        return said
    best = max(rivals, key=lambda name: figures[name]["preference_accuracy"]["value"])
    rival, difference = figures[best]["preference_accuracy"], figures[best].get("reward_minus_this")
    said += f" The best baseline, {_BASELINES[best]}, reaches {share(rival)}; "
    return f"{said}the reward is {outcome(reward, rival, difference)}."


def downstream(arms: Mapping[str, Mapping[str, Any]], minus: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Sentences on training with the reward-filtered subset against each other training set, at R@1.

    `minus`: training set -> direction -> `r1` -> estimate of the reward-filtered subset's lead over it.
    """
    ours = {direction: found for direction in _DIRECTIONS if (found := _r1(arms, "reward", direction)) is not None}
    if not ours:
        return "Training on the subsets was not measured."
    figures = " and ".join(f"{100 * found['value']:.1f} % from {_DIRECTIONS[name]}" for name, found in ours.items())
    against = []
    for name, title in _RIVALS.items():
        outcomes: dict[str, list[str]] = {}
        for direction, estimate in ours.items():
            rival = _r1(arms, name, direction)
            if rival is not None:
                difference = _r1(minus or {}, name, direction)
                outcomes.setdefault(outcome(estimate, rival, difference), []).append(_DIRECTIONS[direction])
        if outcomes:
            against.append(f"{title}: {_in_words(outcomes)}")
    said = f"Trained on the reward-filtered subset, the encoder reaches R@1 of {figures}."
    return f"{said} Against {'; against '.join(against)}." if against else said


def _in_words(outcomes: Mapping[str, list[str]]) -> str:
    if len(outcomes) == 1:
        ((name, directions),) = outcomes.items()
        return f"{name} in both directions" if len(directions) == 2 else f"{name} from {directions[0]}"
    return ", ".join(f"{name} from {directions[0]}" for name, directions in outcomes.items())


def outcome(ours: Mapping[str, Any], rival: Mapping[str, Any], difference: Mapping[str, Any] | None = None) -> str:
    """How two figures stand to each other: by the interval of their difference where there is one.

    Else by whether their intervals overlap, which sees less. Neither is a proof of equality, and none
    is called one.
    """
    if measured(difference):
        assert difference is not None
        if difference["low"] > 0:
            return "higher (the interval of the difference excludes 0)"
        if difference["high"] < 0:
            return "lower (the interval of the difference excludes 0)"
        return "not told apart (the interval of the difference includes 0)"
    if ours["low"] > rival["high"]:
        return "higher (the intervals do not overlap)"
    if ours["high"] < rival["low"]:
        return "lower (the intervals do not overlap)"
    return "not told apart (the intervals overlap)"


def share(estimate: Mapping[str, Any]) -> str:
    """A share in percent with its interval."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} % (95 % interval {low:.1f} to {high:.1f} %)"


def measured(estimate: Mapping[str, Any] | None) -> bool:
    """Whether an estimate has a value and an interval."""
    return estimate is not None and all(estimate.get(name) is not None for name in ("value", "low", "high", "n"))


def _r1(arms: Mapping[str, Mapping[str, Any]], arm: str, direction: str) -> Mapping[str, Any] | None:
    estimate = ((arms.get(arm) or {}).get(direction) or {}).get("r1")
    return estimate if measured(estimate) else None
