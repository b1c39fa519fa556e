"""The evidence behind a reward model, for its page: every scorer beside the reward, calibration, checks.

What belongs here: `metrics["evidence"]` (`evaluation.evidence`) as rows and plots for the template
`evidence.html`, which the page of the model includes. What does not: any figure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compalign_dagster.pages import plots
from compalign_dagster.pages.evaluation import SCORERS
from compalign_dagster.pages.plots import Plot

Estimate = Mapping[str, Any]
NOT_MEASURED: Estimate = {"value": None, "low": None, "high": None, "n": 0}
FIGURES = {
    "preference_accuracy": "prefers what people prefer",
    "tau_c": "tau-c with single ratings",
    "human_auc": "tells people's yes from no across images (AUC)",
    "cross_image_auc": "tells matched from mismatched across images (AUC)",
}
_SEPARATIONS = {"matched": "matched from mismatched captions", "human": "what people accept from what they refuse"}


@dataclass(frozen=True)
class EvidenceView:
    """What the template shows; every estimate is `{value, low, high, n}`."""

    figures: Sequence[str]  # names of the columns
    scorers: Sequence[tuple[str, Sequence[Estimate], Estimate, Estimate]]  # name, figures, leads of the reward
    checks: Sequence[tuple[str, str, bool, Estimate]]  # name, meaning, passed, figure
    separations: Sequence[tuple[str, Estimate, Estimate, Estimate]]  # what, within, across, share left
    parts: Sequence[tuple[str, str, Estimate, Estimate]]  # kind, name, reward, best other scorer
    people: Sequence[tuple[str, Estimate, Estimate]]  # who, agreement, tau-c with the rest
    error: Estimate  # expected calibration error
    reliability: Plot | None


def evidence_view(metrics: Mapping[str, Any]) -> EvidenceView | None:
    """The view of a model's metrics; None where they hold no evidence."""
    found = metrics.get("evidence")
    if not isinstance(found, Mapping):
        return None
    calibration = found.get("calibration") or {}
    people = [("any two", _of(found, "ceiling"), NOT_MEASURED)]
    for name, given in (found.get("one_labeler_against_rest") or {}).items():
        people.append((name, _of(given, "agreement"), _of(given, "tau_c")))
    return EvidenceView(
        figures=list(FIGURES.values()),
        scorers=[
            (
                SCORERS.get(name, name),
                [_of(given, figure) for figure in FIGURES],
                _of(given, "reward_minus_this"),
                _of(given, "tau_c_minus_this"),
            )
            for name, given in (found.get("scorers") or {}).items()
            if any(_of(given, figure)["value"] is not None for figure in FIGURES)
        ],
        checks=[
            (
                name,
                str(check.get("meaning", "")),
                check.get("passed") is True,
                _of(check, "figure"),
            )
            for name, check in (found.get("shortcuts") or {}).items()
        ],
        separations=[
            (what, _of(given, "within"), _of(given, "across"), _of(given, "kept"))
            for name, what in _SEPARATIONS.items()
            for given in [(found.get("across_images") or {}).get(name) or {}]
        ],
        parts=list(_parts(found)),
        people=people,
        error=_of(calibration, "ece"),
        reliability=_reliability(calibration.get("bins") or []),
    )


def _of(given: Mapping[str, Any], name: str) -> Estimate:
    value = given.get(name)
    return value if isinstance(value, Mapping) and "value" in value else NOT_MEASURED


def _parts(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Estimate, Estimate]]:
    """The reward beside the best other scorer, by source, length and criterion."""
    kinds = {"by_source": "caption source", "by_length": "caption length", "by_criterion": "criterion (tau-c)"}
    for key, kind in kinds.items():
        for name, given in (found.get(key) or {}).items():
            reward = _of(given, "reward")
            others = [_of(given, scorer) for scorer in given if scorer not in ("reward", "criterion_head")]
            measured = [estimate for estimate in others if estimate["value"] is not None]
            best = max(measured, key=lambda estimate: estimate["value"], default=NOT_MEASURED)
            if reward["value"] is not None:
                yield kind, name, reward, best


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Plot | None:
    drawn = [(entry["predicted"], entry["observed"], entry["n"]) for entry in bins]
    if not drawn:
        return None
    told = "; ".join(f"{100 * predicted:.0f} % said, {100 * seen['value']:.0f} % seen" for predicted, seen, _ in drawn)
    return Plot(
        plots.draw_svg("reliability", lambda figure: plots.reliability(figure, drawn), width=5.2, height=4.2),
        f"How often people said yes by what the model gave it: {told}.",
        "Each dot is a tenth of the held-out ratings. On the dashed line, what the model calls likely happens as often "
        "as it says. Bars: 95 % interval, drawn over images.",
    )
