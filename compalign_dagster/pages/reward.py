"""The page of `reward_model`: held-out figures, the promotion gate, and how training went."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compalign_dagster.pages import plots
from compalign_dagster.pages.evaluation import AGREEMENT_AXIS, SCORERS
from compalign_dagster.pages.plots import Plot
from compalign_dagster.pages.render import render

_LN2 = ("ln 2", math.log(2))  # the preference loss of a model that cannot tell two captions apart
_LOSS_LABEL = {
    "preference": "validation, preference",
    "anchor": "validation, anchors",
    "total": "validation, total",
}

Curves = dict[str, list[tuple[float, float]]]


def reward_page(metrics: Mapping[str, Any], curves: Mapping[str, Any], gate: Sequence[tuple[str, bool, str]]) -> bytes:
    """The page of one model.

    `metrics`: figures `{value, low, high, n}`, plain numbers, and `baselines` (scorer -> figures).
    `curves`: name -> losses of every step, or (step, loss) points, or dictionaries with `step`.
    `gate`: (claim, passed, figure in words) per condition of promotion.
    """
    agreement = by_scorer(metrics, "preference_accuracy")
    across = by_scorer(metrics, "cross_image_auc")
    return render(
        "reward.html",
        estimates=[(name, value) for name, value in metrics.items() if is_estimate(value)],
        plain=[(name, value) for name, value in metrics.items() if type(value) in (int, float)],
        gate=list(gate),
        passed=all(passed for _, passed, _ in gate),
        stuck=bool(metrics.get("validation_stuck_at_ln2")),
        scorers=[(name, agreement.get(name), across.get(name)) for name in agreement],
        forest=_forest(agreement),
        curves=_curves(curves),
    )


def curves_picture(curves: Mapping[str, Any]) -> bytes:
    """The training curves as a small PNG for an event."""
    found = panels(curves)
    width = 3.6 * max(1, len(found)) + 1
    return plots.draw_png(lambda figure: plots.lines(figure, found, _LN2), width=width, height=2.8)


def is_estimate(value: Any) -> bool:
    """Whether a value is a figure with its interval and count."""
    return isinstance(value, Mapping) and {"value", "low", "high", "n"} <= set(value)


def by_scorer(metrics: Mapping[str, Any], figure: str) -> dict[str, Mapping[str, Any]]:
    """One figure of the reward and of every baseline that has it, under names for people."""
    scorers = {"reward": metrics, **(metrics.get("baselines") or {})}
    found = {SCORERS.get(name, name): (entry or {}).get(figure) for name, entry in scorers.items()}
    return {name: value for name, value in found.items() if value is not None and is_estimate(value)}


def _forest(agreement: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    if not agreement:
        return None
    rows = list(agreement.items())
    svg = plots.draw_svg(
        "forest",
        lambda figure: plots.forest(figure, rows, reference=0.5, xlabel=AGREEMENT_AXIS),
        height=0.62 * len(rows) + 1.2,
    )
    return Plot(
        svg,
        "Share of held-out comparisons in which each scorer prefers what people preferred, with intervals.",
        "Dot: share of held-out comparisons in which the scorer prefers what people preferred. "
        "Bar: 95 % interval, drawn over images. The same numbers are in the table.",
    )


def panels(curves: Mapping[str, Any]) -> list[tuple[str, Curves]]:
    """Curves sorted into a pre-training and a training panel; what is no curve is left out."""
    before: Curves = {}
    training: Curves = {}
    for name, value in curves.items():
        for label, points in _points(name, value).items():
            (before if name.startswith("pretrain") else training)[label] = points
    found = [("pre-training on the crawl, no labels", before), ("training on judgements", training)]
    return [(title, lines) for title, lines in found if lines]


def _points(name: str, value: Any) -> Curves:
    if not isinstance(value, list) or not value:
        return {}
    if all(isinstance(entry, Mapping) for entry in value):
        names = [key for key in value[0] if key != "step"]
        return {
            _LOSS_LABEL.get(key, key) if name == "validation" else f"{name} {key}": [
                (entry["step"], entry[key]) for entry in value if _finite(entry.get(key))
            ]
            for key in names
        }
    pairs = [entry if isinstance(entry, list | tuple) else (at + 1, entry) for at, entry in enumerate(value)]
    return {name: [(step, loss) for step, loss in pairs if _finite(loss)]}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _curves(curves: Mapping[str, Any]) -> Plot | None:
    found = panels(curves)
    if not found:
        return None
    svg = plots.draw_svg("curves", lambda figure: plots.lines(figure, found, _LN2), height=3.5)
    ends = "; ".join(
        f"{name} from {points[0][1]:.3f} to {points[-1][1]:.3f}"
        for _, lines in found
        for name, points in lines.items()
        if points
    )
    return Plot(
        svg,
        f"Loss over training steps: {ends}.",
        "Loss over steps. The dotted line is ln 2, where a model cannot tell two captions apart; "
        "a validation loss that stays there means that nothing was learned.",
    )
