"""Plots as inline SVG that follows the reader's colour scheme, and as small PNGs for Dagster's events.

matplotlib is imported when the first plot is drawn. Equal data gives equal bytes: no dates, salted
identifiers. Text and axes are drawn in a sentinel colour that becomes `currentColor`; data colours are
mid-tones that stand out on white and on near-black. Nothing is told by colour alone: bars differ by
hatching, series by markers and line styles.
"""

import io
import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compalign_dagster.pages.cards import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PNG_BYTES = 60_000

BLUE, ORANGE, TEAL, GREY, PLUM = "#3b82c4", "#c9772d", "#2f9488", "#868c95", "#a565b0"
COLOURS = (BLUE, ORANGE, TEAL, PLUM, GREY)
MARKERS = ("o", "s", "^", "D", "v")
HATCHES = ("", "///", "...", "xx", "\\\\\\")
_INK = "#0a0b0c"  # becomes currentColor
_INK_RGB = (0x0A / 255, 0x0B / 255, 0x0C / 255)
_POINTS = 300  # of a drawn curve
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "compalign",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


# Title, tick names, series name -> estimate {value, low, high} per tick.
Panel = tuple[str, Sequence[str], Mapping[str, Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class Plot:
    """A plot for the `plot` macro. `svg` is markup made here; `alt` and `caption` are plain text."""

    svg: str
    alt: str
    caption: str


def draw_svg(name: str, draw: Callable[["Figure"], None], *, width: float = 9.0, height: float = 3.4) -> str:
    """An inline SVG element; `draw` fills the figure. `name` keeps identifiers unique within a page."""
    out = io.StringIO()
    _save(draw, width, height, out, "svg")
    return _inline(out.getvalue(), name)


def draw_png(draw: Callable[["Figure"], None], *, width: float = 7.0, height: float = 3.0) -> bytes:
    """A PNG of at most 60 kB on white, for places that cannot follow a colour scheme."""
    for dpi in (110, 90, 70, 50, 30):
        out = io.BytesIO()
        _save(draw, width, height, out, "png", dpi=dpi, facecolor="white")
        if out.tell() <= PNG_BYTES:
            break
    return out.getvalue()


def _save(draw: Callable[["Figure"], None], width: float, height: float, out: Any, kind: str, **options: Any) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        # The reader's browser draws SVG text, with fonts of its own: emoji are no problem there.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        nothing = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, metadata=nothing, **options)


def _inline(svg: str, name: str) -> str:
    """The bare `<svg>` element: no prologue, no size of its own, no identifier that another plot has."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


def label(text: Any, limit: int = 28) -> str:
    """A name for an axis or legend: bounded, one line, no invisible characters."""
    shown = readable(text, limit)
    return shown.text + ("…" if shown.cut else "")


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u2009")


def grid(axes: "Axes", axis: Any = "y") -> None:
    """Faint lines across the plot, along one axis."""
    axes.grid(axis=axis, color=_INK, alpha=0.14, linewidth=0.8)
    axes.tick_params(length=0)


def hatched(colour: str, hatch: str) -> dict[str, Any]:
    """Bar options: a fill with hatching that shows in grey print and in both colour schemes."""
    return {"facecolor": colour, "hatch": hatch, "edgecolor": (*_INK_RGB, 0.45), "linewidth": 0}


def histogram(figure: "Figure", edges: Sequence[float], kept: Sequence[int], dropped: Sequence[int],
              cuts: Sequence[tuple[str, float]]) -> None:  # fmt: skip
    """Kept on dropped rewards in bins, with labelled cuts."""
    axes = figure.add_subplot()
    left, width = list(edges[:-1]), [high - low for low, high in itertools.pairwise(edges)]
    axes.bar(left, dropped, width, align="edge", label="dropped", **hatched(GREY, "////"))
    axes.bar(left, kept, width, bottom=dropped, align="edge", color=BLUE, label="kept")
    for at, (name, cut) in enumerate(cuts):
        axes.axvline(cut, color=_INK, linewidth=1.4, linestyle=("--", ":", "-.")[at % 3])
        axes.annotate(
            label(name), (cut, 0.99 - 0.09 * at), xycoords=("data", "axes fraction"), xytext=(5, 0),
            textcoords="offset points", va="top",
        )  # fmt: skip
    axes.set_xlabel("reward (larger is better aligned)")
    axes.set_ylabel("pairs")
    axes.margins(x=0.01)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.12)
    axes.yaxis.set_major_formatter(lambda value, _: _count(value))
    grid(axes)
    figure.legend(loc="outside upper right", ncols=2)


def waterfall(figure: "Figure", steps: Sequence[tuple[str, int]], kept: int) -> None:
    """From all pairs down to the kept ones: the first step is the total, the others are taken off it."""
    axes = figure.add_subplot()
    names = [label(name) for name, _ in steps] + ["kept"]
    left, rows = 0, list(range(len(names)))
    beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
    for row, (_, size) in enumerate(steps):
        if row == 0:
            left = size
            axes.barh(row, size, color=GREY, height=0.62)
        else:
            left -= size
            axes.barh(row, size, left=left, height=0.62, **hatched(ORANGE, "////"))
        end = left + size if row else size
        axes.annotate(("\u2212" if row else "") + _count(size), (end, row), **beside)
    axes.barh(rows[-1], kept, color=BLUE, height=0.62)
    axes.annotate(_count(kept), (kept, rows[-1]), **beside)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("pairs")
    axes.xaxis.set_major_formatter(lambda value, _: _count(value))
    grid(axes, "x")


def forest(figure: "Figure", rows: Sequence[tuple[str, Mapping[str, Any]]], *, reference: float | None,
           xlabel: str, as_percent: bool = True) -> None:  # fmt: skip
    """One interval per row; the first row is drawn as the one that matters."""
    axes = figure.add_subplot()
    scale = 100 if as_percent else 1
    for at, (_, estimate) in enumerate(rows):
        colour, marker = (BLUE, "o") if at == 0 else (GREY, "s")
        if estimate.get("value") is None:
            axes.annotate("not measured", (0.02, at), xycoords=("axes fraction", "data"), va="center")
            continue
        value = estimate["value"] * scale
        low, high = (estimate.get(end) for end in ("low", "high"))
        spread = None
        if low is not None and high is not None:
            spread = [[value - low * scale], [high * scale - value]]
        axes.errorbar(value, at, xerr=spread, fmt=marker, color=colour, capsize=4, markersize=7, lw=2.2)
        axes.annotate(
            f"{value:.1f} %" if as_percent else f"{value:.3f}", (value, at), xytext=(0, 9),
            textcoords="offset points", ha="center", fontsize=9.5,
        )  # fmt: skip
    if reference is not None:
        axes.axvline(reference * scale, color=_INK, linestyle="--", linewidth=1.2)
        axes.annotate(
            "chance", (reference * scale, 1), xycoords=("data", "axes fraction"), xytext=(5, -2),
            textcoords="offset points", va="top", fontsize=9.5,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.45, -0.75)
    axes.margins(x=0.08)
    axes.set_xlabel(xlabel)
    grid(axes, "x")


def reliability(figure: "Figure", bins: Sequence[tuple[float, Mapping[str, Any], int]]) -> None:
    """Predicted probability against observed share, one dot with its interval per bin."""
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color=_INK, linestyle="--", linewidth=1.2)
    for predicted, observed, _ in bins:
        value = 100 * observed["value"]
        low, high = (observed[end] for end in ("low", "high"))
        spread = [[value - 100 * low], [100 * high - value]] if low is not None and high is not None else None
        axes.errorbar(100 * predicted, value, yerr=spread, fmt="o", color=BLUE, capsize=3, markersize=6, lw=1.8)
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("P(a person says it fits), predicted %")
    axes.set_ylabel("people who said so, %")
    grid(axes, "both")


def grouped_bars(figure: "Figure", groups: Sequence[Panel], ylabel: str) -> None:
    """Panels side by side, shares as percent, with intervals."""
    panels = figure.subplots(1, max(1, len(groups)), sharey=True, squeeze=False)[0]
    for panel, (title, ticks, series) in zip(panels, groups, strict=True):
        width = 0.82 / max(1, len(series))
        for at, (name, estimates) in enumerate(series.items()):
            x = [tick - 0.41 + width * (at + 0.5) for tick in range(len(ticks))]
            values = [100 * (estimate.get("value") or 0) for estimate in estimates]
            look = hatched(COLOURS[at % len(COLOURS)], HATCHES[at % len(HATCHES)])
            panel.bar(x, values, width * 0.92, label=label(name), **look)
            for place, value, estimate in zip(x, values, estimates, strict=True):
                low, high = estimate.get("low"), estimate.get("high")
                if low is not None and high is not None:
                    error = [[max(0.0, value - 100 * low)], [max(0.0, 100 * high - value)]]
                    panel.errorbar(place, value, yerr=error, fmt="none", ecolor=_INK, capsize=2.5, lw=1.2)
        panel.set_title(title)
        panel.set_xticks(range(len(ticks)), ticks)
        grid(panel)
    panels[0].set_ylabel(ylabel)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=max(1, len(names)))


def lines(figure: "Figure", panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]],
          reference: tuple[str, float] | None = None, ylabel: str = "loss") -> None:  # fmt: skip
    """Panels of curves over steps; long curves are averaged down. `reference`: a level, but not of pre-training."""
    drawn = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for panel, (title, curves) in zip(drawn, panels, strict=False):
        for at, (name, points) in enumerate(curves.items()):
            thin = thinned(points)
            few = len(thin) <= 40
            panel.plot(
                [x for x, _ in thin], [y for _, y in thin], color=COLOURS[at % len(COLOURS)], linewidth=1.8,
                linestyle=("-", "--", "-.", ":")[at % 4], marker=MARKERS[at % len(MARKERS)] if few else None,
                markersize=4.5, label=label(name),
            )  # fmt: skip
        if reference and not title.startswith("pre-training"):
            panel.axhline(reference[1], color=_INK, linestyle=":", linewidth=1.2)
            panel.annotate(
                reference[0], (1, reference[1]), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=9.5,
            )  # fmt: skip
        panel.set_title(title)
        panel.set_xlabel("step")
        grid(panel)
        panel.legend(loc="best", fontsize=9.5)
    drawn[0].set_ylabel(ylabel)


def thinned(points: Sequence[tuple[float, float]], most: int = _POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means of equal stretches when there are more."""
    if len(points) <= most:
        return [(float(x), float(y)) for x, y in points]
    stretch = -(-len(points) // most)
    parts = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return [(float(part[-1][0]), sum(y for _, y in part) / len(part)) for part in parts]
