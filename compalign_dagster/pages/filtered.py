"""The page of `filtered_dataset`: what was kept, what was dropped and why, and how it looks at the cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compalign_dagster.pages import plots
from compalign_dagster.pages.cards import Card, gallery
from compalign_dagster.pages.plots import Plot
from compalign_dagster.pages.render import NOTHING, render
from compalign_dagster.selection.reasons import MEANING

_BUDGETS_SHOWN = 100
_QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Shown:
    """Some pairs of a group: how they were chosen, their pictures, and what gives the same pairs."""

    title: str
    cards: Sequence[Card]
    command: str
    sql: str


@dataclass(frozen=True)
class Section:
    """The kept pairs, or those of one reason: how many, some of them, and the address of all."""

    group: str
    pairs: int
    shown: Sequence[Shown]
    link: str = ""


def filtered_page(
    facts: Mapping[str, Any],
    histogram: Mapping[str, Sequence[float]],
    sections: Sequence[Section],
    counts: tuple[str, str] = ("", ""),
) -> bytes:
    """The page of one version of the dataset.

    `facts`: the account of the selection: `pairs`, `kept`, `dropped_by_reason`, optionally `quarantined`,
    `budgets`, `corpora`, `model_version` and more, shown as they are. `histogram`: `edges` [n + 1], `kept`
    and `dropped` counts [n]. `sections`: the kept pairs and one for each reason. `counts`: command and SQL that
    count the reasons. Raises ValueError when the waterfall does not end at the kept pairs.
    """
    steps, kept = steps_of(facts), facts["kept"]
    if steps[0][1] - sum(size for _, size in steps[1:]) != kept:
        raise ValueError(f"the waterfall {steps} does not end at {kept} kept pairs")
    return render(
        "filtered.html",
        facts=facts,
        total=steps[0][1],
        kept=kept,
        steps=[
            (name, size, MEANING.get(name, "could not be scored" * (name == _QUARANTINED))) for name, size in steps[1:]
        ],
        budgets=list(facts.get("budgets") or [])[:_BUDGETS_SHOWN],
        corpora=list((facts.get("corpora") or {}).items())[:_BUDGETS_SHOWN],
        histogram=_histogram(histogram, facts),
        waterfall=_waterfall(steps, kept),
        sections=[
            (at, section, MEANING.get(section.group, ""), [(shown, gallery(shown.cards)) for shown in section.shown])
            for at, section in enumerate(sections)
        ],
        linked={section.group: at for at, section in enumerate(sections)},
        counts=counts,
        rest=[(name, value) for name, value in facts.items() if isinstance(value, str | int | float)],
    )


def histogram_picture(histogram: Mapping[str, Sequence[float]], facts: Mapping[str, Any]) -> bytes:
    """Kept and dropped rewards with the cut, as a small PNG for an event."""
    cuts = _cuts(facts)
    edges, kept, dropped = histogram["edges"], histogram["kept"], histogram["dropped"]
    return plots.draw_png(lambda figure: plots.histogram(figure, edges, _whole(kept), _whole(dropped), cuts))


def steps_of(facts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The waterfall that the facts of a selection describe: pairs, then what was taken off, in the order of reasons."""
    dropped = dict(facts.get("dropped_by_reason") or {})
    known = {name: dropped.pop(name) for name in MEANING if name in dropped}
    taken = {_QUARANTINED: facts.get("quarantined") or 0, **known, **dropped}
    total = facts.get("pairs", facts["kept"] + sum(taken.values()))
    return [("pairs", total), *((name, size) for name, size in taken.items() if size)]


def _whole(counts: Sequence[float]) -> list[int]:
    return [int(entry) for entry in counts]


def _cuts(facts: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The cut of every budget that has one, at most three; more would hide the histogram."""
    budgets = [entry for entry in facts.get("budgets") or [] if entry.get("cut") is not None]
    largest = sorted(budgets, key=lambda entry: -entry["n"])[:3]
    if len(budgets) == 1:
        return [("cut", budgets[0]["cut"])]
    names = ["the rest" if entry["budget"] == "*" else entry["budget"] for entry in largest]
    return [(f"cut of {name}", entry["cut"]) for name, entry in zip(names, largest, strict=True)]


def _histogram(histogram: Mapping[str, Sequence[float]], facts: Mapping[str, Any]) -> Plot | None:
    edges, kept, dropped = histogram["edges"], _whole(histogram["kept"]), _whole(histogram["dropped"])
    if len(edges) < 2:
        return None
    cuts = _cuts(facts)
    svg = plots.draw_svg("histogram", lambda figure: plots.histogram(figure, edges, kept, dropped, cuts))
    where = "; ".join(f"{name} at {value:.3f}" for name, value in cuts) or NOTHING
    return Plot(
        svg,
        f"Histogram of rewards from {edges[0]:.2f} to {edges[-1]:.2f}: {sum(kept)} kept and {sum(dropped)} "
        f"dropped pairs; {where}.",
        "Pairs by reward, without those that a rule refused. Solid: kept; hatched: dropped; the line is the lowest "
        "kept reward.",
    )


def _waterfall(steps: Sequence[tuple[str, int]], kept: int) -> Plot | None:
    if not steps:
        return None
    named = [(name.replace("_", " "), size) for name, size in steps]
    said = "".join(f", minus {size} {name}" for name, size in named[1:])
    svg = plots.draw_svg(
        "waterfall", lambda figure: plots.waterfall(figure, named, kept), height=0.5 * (len(steps) + 1) + 0.8
    )
    return Plot(
        svg,
        f"{named[0][1]} pairs{said}, leaves {kept}.",
        "From all pairs to the kept ones. The table below holds the same numbers and adds up.",
    )
