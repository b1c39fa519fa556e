"""The page of a diff: what entered and what left between two versions, why, and how it looks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl

from compalign_dagster.pages import plots
from compalign_dagster.pages.browse import way
from compalign_dagster.pages.cards import Card, gallery
from compalign_dagster.pages.pictures import cards
from compalign_dagster.pages.plots import Plot
from compalign_dagster.pages.render import render
from compalign_dagster.selection import policy_file
from compalign_dagster.selection.diff import CAUSES, ENTERED, LEFT, SIDES, Diff, diff, shards_changed
from compalign_dagster.selection.pairs import index_keys, with_captions
from compalign_dagster.selection.version import Version
from compalign_dagster.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 12  # pairs of each cause on each side: twenty-two galleries stay below 5 MB
_CORPORA_SHOWN = 100


def diff_view(
    a: Version, b: Version, landing: Store, found: Diff | None = None, *, name: str = "", served: bool = True
) -> bytes:
    """The page of the changes from `a` to `b`, with the pictures that lie in `landing`.

    `name` is what `b` will be called, where it is not published yet. Pictures lead to the page server's paths where
    the page is `served` by it; elsewhere the command stands beside them.
    """
    found = found or diff(a, b)
    names = {LEFT: a.artifact.work_key[:12], ENTERED: name or b.artifact.work_key[:12]}
    keeper = {LEFT: a, ENTERED: b}
    galleries = {
        (side, cause): _cards(
            keeper[side], landing, found.samples[side, cause].head(_SHOWN), names[side] if served else ""
        )
        for side in SIDES
        for cause in CAUSES
        if found.counts[side, cause]
    }
    about = {
        "a": {"name": names[LEFT], "kept": a.facts["kept"], "pairs": a.facts["pairs"]},
        "b": {"name": names[ENTERED], "kept": b.facts["kept"], "pairs": b.facts["pairs"]},
        "shards": dict(shards_changed(a, b)),
        "policy": [
            (item.field, item.old, item.new, item.meaning) for item in policy_file.differences(a.policy, b.policy)
        ],
        "models": sorted({str(version.facts.get("model_version") or "") for version in (a, b)}),
    }
    rewards = {side: (found.edges[side], list(map(int, counts))) for side, counts in found.rewards.items()}
    return diff_page(about, found.as_json(), rewards, galleries)


def diff_page(
    about: Mapping[str, Any],
    account: Mapping[str, Any],
    rewards: Mapping[str, tuple[Sequence[float], Sequence[int]]],
    galleries: Mapping[tuple[str, str], Sequence[Card]],
) -> bytes:
    """The page of one diff.

    `about`: versions `a` and `b` (name, kept, pairs), `shards` (new, removed, replaced), `policy` (field, old, new,
    meaning), `models`. `account`: `Diff.as_json`. `rewards`: per side bins' edges [n + 1] and counts [n]. `galleries`:
    cards by (side, cause), at most 12 of each are shown.
    """
    return render(
        "diff.html",
        about=about,
        account=account,
        meaning=CAUSES,
        causes=[name for name in CAUSES if any(name in account[side]["by_cause"] for side in SIDES)],
        corpora=sorted({name for side in SIDES for name in account[side]["by_corpus"]})[:_CORPORA_SHOWN],
        plot=_plot(rewards),
        galleries=[
            (side, cause, account[side]["by_cause"][cause], gallery(shown, _SHOWN), _command(about, side, cause))
            for (side, cause), shown in galleries.items()
        ],
    )


def _command(about: Mapping[str, Any], side: str, cause: str) -> str:
    """What prints the same pairs."""
    names = f"{about['a']['name']} {about['b']['name']}"
    return f"compalign diff {names} --side {side} --cause {cause} --limit {_SHOWN}"


def _cards(version: Version, landing: Store, pairs: pl.DataFrame, name: str) -> list[Card]:
    rows = with_captions(pairs, version.store, index_keys(version)).to_dicts()
    return [
        replace(card, note=_note(row), **way(name, card.pair_id))
        for card, row in zip(cards(landing, rows), rows, strict=True)
    ]


def _note(row: Mapping[str, Any]) -> str:
    """Both rewards where they differ, the other version's reason, the place."""
    before, after = row["before"], row["after"]
    moved = f"{before:+.3f} → {after:+.3f} · " if None not in (before, after) and before != after else ""
    reason = f"otherwise {row['reason'].replace('_', ' ')} · " if row["reason"] else ""
    return f"{moved}{reason}{row['shard']} {row['key']} {row['caption_index']}"


def _plot(rewards: Mapping[str, tuple[Sequence[float], Sequence[int]]]) -> Plot | None:
    shown = [(side, *rewards[side]) for side in SIDES if side in rewards]
    if not shown:
        return None

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for panel, (side, edges, counts) in zip(panels, shown, strict=True):
            widths = [high - low for low, high in pairwise(edges)]
            look = plots.hatched(plots.BLUE, "") if side == ENTERED else plots.hatched(plots.GREY, "////")
            panel.bar(edges[:-1], counts, widths, align="edge", **look)
            panel.set_title(side)
            panel.set_xlabel("reward (larger is better aligned)")
            plots.grid(panel)
        panels[0].set_ylabel("pairs")

    said = "; ".join(
        f"{sum(counts)} {side}, rewards from {edges[0]:.2f} to {edges[-1]:.2f}" for side, edges, counts in shown
    )
    return Plot(
        plots.draw_svg("rewards", draw, height=3.0),
        f"Histograms of rewards: {said}.",
        "Rewards of what entered, by the newer version, and of what left, by the older. Rewards of two models do not "
        "compare.",
    )
