"""The page of a what-if: what each fraction would keep, and the pairs that the cut is about.

The list of pairs stands still while the reader moves the cut: what changes is which of them are marked as kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from compalign_dagster.pages import plots
from compalign_dagster.pages.browse import way
from compalign_dagster.pages.cards import Card, gallery
from compalign_dagster.pages.pictures import pictures
from compalign_dagster.pages.plots import Plot
from compalign_dagster.pages.render import NOTHING, render
from compalign_dagster.selection.hand import Hand
from compalign_dagster.selection.margin import COUNT, STOP, margin, ranks_sql, rungs
from compalign_dagster.selection.pairs import index_keys, with_captions
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.whatif import OTHERS, curve, of_budget, what_if
from compalign_dagster.store import Store

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

MARGINS = {
    "above": ("Just above the cut", "The last pairs that are kept, best first."),
    "below": ("Just below the cut", "The first pairs that are not, best first."),
}
_GROUPS_SHOWN = 60
_ONE_PASS = 5_000_000  # pairs; of more, each fraction is counted from histograms
_TITLES = {
    "corpus": "By corpus",
    "domain": "By domain",
    "caption_length": "By characters of the caption",
    "resolution": "By pixels of the shorter side",
}


@dataclass(frozen=True)
class Placed:
    """A pair, and the smallest fraction of its budget that keeps it."""

    card: Card
    kept_from: float


@dataclass(frozen=True)
class Group:
    """Some pairs, and what gives the same ones."""

    pairs: Sequence[Placed]
    command: str
    sql: str


def what_if_view(version: Version, landing: Store, name: str, *, served: bool = True) -> bytes:
    """The page of a version called `name`, with the pictures that lie in `landing`.

    Pictures lead to the page server's paths where the page is `served` by it; elsewhere the command stands beside them.
    """
    of = name if served else ""
    hand = Hand(version)
    edge = margin(hand, version.policy)
    tried = [of_budget(version.policy, edge.budget, Decimal(percent) / 100) for percent in range(0, 101, STOP)]
    small = version.facts["pairs"] <= _ONE_PASS
    found = curve(hand, tried) if small else [what_if(hand, policy) for policy in tried]
    steps = rungs(hand, version.policy, edge.budget)
    command = f"compalign what-if --dataset {name} --pairs"
    cards = {
        side: Group(placed(version, landing, of, getattr(edge, side)), f"{command} {side}", edge.sql(side))
        for side in MARGINS
    }
    sql = ranks_sql(edge.budget, steps["rank"].to_list())
    cards["rungs"] = Group(placed(version, landing, of, steps), f"{command} rungs", sql)
    about = {"name": name, "budget": edge.budget, "n": edge.n, "kept": edge.kept, "policy": version.policy}
    return what_if_page(
        {**about, "policy": version.policy.model_dump(mode="json")},
        [outcome.as_json() for outcome in found],
        cards,
    )


def placed(version: Version, landing: Store, name: str, rows: "pl.DataFrame") -> list[Placed]:
    """Rows of a margin as cards: picture, caption, every score, and from which fraction on they are kept."""
    found = with_captions(rows, version.store, index_keys(version)).to_dicts()
    return [
        Placed(
            Card(
                image=image,
                caption=row["caption"] or "",
                reward=row["reward"],
                note=f"kept from {100 * row['kept_from']:.4g} % on · fits: {_fit(row['human_fit'])} · "
                f"{row['shard']} {row['key']} {row['caption_index']}",
                pair_id=row["pair_id"],
                **way(name, row["pair_id"]),
            ),
            row["kept_from"],
        )
        for image, row in zip(pictures(landing, found), found, strict=True)
    ]


def what_if_page(version: Mapping[str, Any], curve: Sequence[Mapping[str, Any]], cards: Mapping[str, Group]) -> bytes:
    """The page of one version.

    `version`: its `name`, `policy`, and of its largest budget (`budget`) the pairs `n` and how many are `kept`.
    `curve`: outcomes as `Outcome.as_json` gives them, at each `STOP` percent of that budget, from 0 to 100.
    `cards`: pairs under `above`, `below` and `rungs` (those at the cut of each fifth percent, best first).
    """
    stops = [_stop(at, outcome, cards["rungs"].pairs, version) for at, outcome in _offered(curve)]
    now = min(range(len(stops)), key=lambda at: abs(stops[at]["kept_budget"] - version["kept"]))
    return render(
        "what_if.html",
        version=version,
        stops=stops,
        now=now,
        curve=_plot(curve),
        rungs=gallery((item.card for item in cards["rungs"].pairs), COUNT),
        sources={name: (group.command, group.sql) for name, group in cards.items()},
        margins=[
            (name, title, note, gallery((item.card for item in cards[name].pairs), COUNT))
            for name, (title, note) in MARGINS.items()
        ],
        tables=_tables(curve),
    )


def _offered(curve: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Percent and outcome of the cuts that the reader can choose."""
    return [(at * STOP, outcome) for at, outcome in enumerate(curve)]


def _budget(outcome: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [row for row in outcome["budgets"] if row["budget"] == name]


def _stop(
    percent: int, outcome: Mapping[str, Any], rungs: Sequence[Placed], version: Mapping[str, Any]
) -> dict[str, Any]:
    kept = sum(row["kept"] for row in _budget(outcome, version["budget"]))
    above = sum(item.kept_from * version["n"] < kept for item in rungs)
    return {**outcome, "percent": percent, "kept_budget": kept, "rungs": above}


def _tables(curve: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[int], list[tuple[str, int, list[int]]]]]:
    """Per dimension: the percents shown, and for each group its name, candidates, and what each percent keeps of it."""
    offered = _offered(curve)[1:-1:2]
    found = []
    for dimension, title in _TITLES.items():
        first = [row for row in offered[0][1]["groups"] if row["dimension"] == dimension]
        kept = [
            {row["group"]: row["kept"] for row in outcome["groups"] if row["dimension"] == dimension}
            for _, outcome in offered
        ]
        rows = [
            (_named(dimension, row["group"]), row["candidates"], [each[row["group"]] for each in kept])
            for row in sorted(first, key=lambda row: (-row["candidates"] * (dimension == "domain"), row["group"]))
        ]
        found.append((title, [percent for percent, _ in offered], rows[:_GROUPS_SHOWN]))
    return found


def _named(dimension: str, group: str) -> str:
    if dimension != "domain":
        return group
    return {"": "without a URL", OTHERS: "all other domains"}.get(group, group)


def _fit(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f} %"


def _plot(curve: Sequence[Mapping[str, Any]]) -> Plot:
    share = [percent for percent, _ in _offered(curve)]

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        for axes, name, label, scale in (
            (left, "mean_reward", "mean reward of what is kept", 1),
            (right, "expected_fit", "kept captions that fit, expected %", 100),
        ):
            points = [(x, scale * row[name]) for x, row in zip(share, curve, strict=True) if row[name] is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], color=plots.BLUE, linewidth=1.8)
            axes.set_xlabel("keep fraction, %")
            axes.set_ylabel(label)
            plots.grid(axes, "both")

    ends = [row for row in curve if row["kept"]]
    first, last = (ends[0], ends[-1]) if ends else (curve[0], curve[-1])
    return Plot(
        plots.draw_svg("curve", draw, height=3.0),
        f"Mean reward from {_figure(first['mean_reward'])} ({first['kept']} kept) to {_figure(last['mean_reward'])} "
        f"({last['kept']} kept); expected share of captions that fit from {_figure(first['expected_fit'])} to "
        f"{_figure(last['expected_fit'])}.",
        f"What a person would say of what is kept, at {len(curve)} fractions: the mean reward, and the share of "
        "captions that fit by the calibrated probability of each pair.",
    )


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
