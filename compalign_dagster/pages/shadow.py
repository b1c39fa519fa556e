"""The page of `shadow_report`: a candidate beside the promoted model, before anyone says yes."""

from collections.abc import Mapping, Sequence
from typing import Any

from compalign_dagster.pages import plots
from compalign_dagster.pages.cards import Card, gallery
from compalign_dagster.pages.plots import Plot
from compalign_dagster.pages.render import count, render

_GALLERIES = {  # key -> heading, what the pictures are
    "enters": ("Would enter", "Kept by the candidate alone; those that rise most come first."),
    "leaves": ("Would leave", "Kept by the promoted model alone; those that fall most come first."),
    "best": ("Best", "The candidate's highest rewards."),
    "worst": ("Worst", "The candidate's lowest rewards."),
}
_FIGURES = {
    "spearman": "Spearman correlation of the two rewards: 1 where no rank changes",
    "kendall_tau_b": "Kendall's tau-b: 1 where no two pairs change places",
    "kept_overlap": "share of what is kept now that the candidate would keep too",
}
_MODELS = {"promoted_rewards": "promoted model", "candidate_rewards": "candidate"}


def shadow_page(report: Mapping[str, Any], galleries: Mapping[str, Sequence[Card]]) -> bytes:
    """The page of one report, as `scoring.shadow.compare` and the asset made it.

    `galleries`: cards under `enters, leaves` or `best, worst`; at most 24 of each are shown.
    """
    return render(
        "shadow.html",
        report=report,
        refused=sum(report["refused"].values()),
        figures=[(name, meaning, report[name]) for name, meaning in _FIGURES.items() if name in report],
        changes=[
            (f"Would {verb}", count(report[name]["of_the_crawl"]), "pairs of the crawl, estimated")
            for name, verb in (("enters", "enter"), ("leaves", "leave"))
            if name in report
        ],
        rewards=[(name, report[key], _histogram(key, name, report[key])) for key, name in _shown(report)],
        shares=[share for share, _ in report["candidate_rewards"]["quantiles"]],
        galleries=[
            (name, title, note, gallery(galleries[name]))
            for name, (title, note) in _GALLERIES.items()
            if name in galleries
        ],
        facts=[(name, report[name]) for name in ("candidate", "promoted", "policy", "refused", "device")],
    )


def rewards_picture(report: Mapping[str, Any]) -> bytes:
    """The candidate's rewards on the sample with its cut, as a small PNG for an event."""
    found = report["candidate_rewards"]
    return plots.draw_png(lambda figure: _draw(figure, found))


def _shown(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, name) for key, name in _MODELS.items() if key in report]


def _draw(figure: Any, found: Mapping[str, Any]) -> None:
    cuts = [("cut", found["cut"])] if found["cut"] is not None else []
    edges = found["edges"] or [0.0, 1.0]
    plots.histogram(figure, edges, found["kept"] or [0], found["dropped"] or [0], cuts)


def _histogram(key: str, name: str, found: Mapping[str, Any]) -> Plot | None:
    if not found["edges"]:
        return None
    svg = plots.draw_svg(key.replace("_", "-"), lambda figure: _draw(figure, found))
    cut = "no cut" if found["cut"] is None else f"the cut at {found['cut']:.3f}"
    return Plot(
        svg,
        f"Histogram of the {name}'s rewards from {found['edges'][0]:.2f} to {found['edges'][-1]:.2f}; {cut}.",
        f"The sample by the {name}'s reward. Solid: kept; hatched: dropped. Rewards of two models do not compare: only "
        "the shapes and the pairs on each side of the cut do.",
    )
