"""The page of `reward_model`: held-out figures, the promotion gate, and how training went."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compalign_dagster.pages import plots
from compalign_dagster.pages.evaluation import AGREEMENT_AXIS, SCORERS
from compalign_dagster.pages.evidence import evidence_view
from compalign_dagster.pages.plots import Plot
from compalign_dagster.pages.render import render

_LN2 = ("ln 2", math.log(2))  # the preference loss of a model that cannot tell two captions apart
_TERMS = {
    "preference": "comparisons",
    "anchor": "anchors across images",
    "rating": "ratings",
    "criteria": "single criteria",
}

Curves = dict[str, list[tuple[float, float]]]


def reward_page(metrics: Mapping[str, Any], curves: Mapping[str, Any], gate: Sequence[tuple[str, bool, str]]) -> bytes:
    """The page of one model.

    `metrics`: figures `{value, low, high, n}`, plain numbers, and `baselines` (scorer -> figures).
    `curves`: `pretrain`: losses of every step; `terms`: term -> losses of every step; `validation`: dictionaries
    with `step`, terms and `accuracy`; `best`: the one whose weights are kept. What is missing is left out.
    `metrics["evidence"]`, where there is one, is shown by `evidence.py`.
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
        accuracy=_accuracy(curves),
        evidence=evidence_view(metrics),
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
    """Losses over steps: pre-training, each term in training, each term on the validation images."""
    found = [
        ("pre-training, no labels", {"joint loss": _steps(curves.get("pretrain"))}),
        ("training, by term", {_TERMS.get(k, k): _steps(v) for k, v in (curves.get("terms") or {}).items()}),
        ("validation, by term", {label: _validated(curves, name) for name, label in _TERMS.items()}),
    ]
    told = [(title, {name: points for name, points in lines.items() if points}) for title, lines in found]
    return [(title, lines) for title, lines in told if lines]


def _steps(losses: Any) -> list[tuple[float, float]]:
    """Losses of every step as points; none for a term that is 0 throughout, as those without judgements are."""
    points = [(float(at), loss) for at, loss in enumerate(losses or [], start=1) if _finite(loss)]
    return points if any(loss for _, loss in points) else []


def _validated(curves: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in curves.get("validation") or [] if _finite(entry.get(name))]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _curves(curves: Mapping[str, Any]) -> Plot | None:
    found = panels(curves)
    if not found:
        return None
    svg = plots.draw_svg("curves", lambda figure: plots.lines(figure, found, _LN2), height=3.5)
    ends = "; ".join(
        f"{title}: {name} from {points[0][1]:.3f} to {points[-1][1]:.3f}"
        for title, lines in found
        for name, points in lines.items()
    )
    return Plot(
        svg,
        f"Loss over training steps: {ends}.",
        "Loss over steps. The dotted line is ln 2, where a model cannot tell two captions apart; "
        "a validation loss of comparisons that stays there means that nothing was learned.",
    )


def _accuracy(curves: Mapping[str, Any]) -> Plot | None:
    points = [(step, 100 * share) for step, share in _validated(curves, "accuracy")]
    if not points:
        return None
    lines = [("validation images", {"agrees with people": points})]
    svg = plots.draw_svg("accuracy", lambda figure: plots.lines(figure, lines, ylabel="% of comparisons"), height=2.6)
    best = curves.get("best") or {}
    kept = f" The weights of step {best['step']:,} were kept." if _finite(best.get("step")) else ""
    return Plot(
        svg,
        f"Share of comparisons of validation images that the model orders as people did: {points[0][1]:.1f} % at step "
        f"{points[0][0]}, {points[-1][1]:.1f} % at step {points[-1][0]}.",
        f"Share of comparisons of validation images in which the model prefers what people preferred.{kept}",
    )
