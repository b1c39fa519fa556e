"""The picture of a cascade's plan: both models' rewards of the sampled pairs, and what is turned down."""

from collections.abc import Mapping, Sequence
from typing import Any

from compalign_dagster.pages import plots


def plan_picture(budgets: Mapping[str, tuple[Sequence[float], Sequence[float], float | None]]) -> bytes:
    """A small PNG for an event: a panel for each budget, with cheap scores, rewards and the threshold or None."""
    return plots.draw_png(lambda figure: _draw(figure, budgets))


def _draw(figure: Any, budgets: Mapping[str, tuple[Sequence[float], Sequence[float], float | None]]) -> None:
    panels = figure.subplots(1, max(1, len(budgets)), squeeze=False)[0]
    for panel, (name, (cheap, reward, threshold)) in zip(panels, budgets.items(), strict=False):
        panel.scatter(cheap, reward, s=3, alpha=0.4, color=plots.BLUE, linewidths=0)
        if threshold is not None:
            panel.axvline(threshold, color=plots.ORANGE, linestyle="--", linewidth=1.4)
        state = "not used" if threshold is None else "left of the line: turned down"
        panel.set_title(f"{plots.label(name)} ({state})")
        panel.set_xlabel("reward of the cheap model")
        plots.grid(panel, "both")
    panels[0].set_ylabel("reward")
