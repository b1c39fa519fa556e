"""The page of `eval_report`: does the reward agree with people, and does filtering help training?"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from compalign_dagster.pages import plots, verdicts
from compalign_dagster.pages.plots import Plot
from compalign_dagster.pages.render import render

SCORERS = {
    "reward": "reward",
    "cosine": "image-text cosine",
    "itm": "image-text matching",
    "label_free": "best score without labels",
    "caption_length": "caption length",
    "text_only": "caption text alone",
}
ARMS = {
    "everything": "everything",
    "random": "random subset",
    "cosine": "cosine-filtered",
    "reward": "reward-filtered",
}
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
AGREEMENT_AXIS = "agrees with people, % of comparisons"
RECALLS = ("r1", "r5", "r10")
RECALL_NAMES = ("R@1", "R@5", "R@10")


def eval_page(report: Mapping[str, Any]) -> bytes:
    """The page of one evaluation.

    `report`, every estimate being `{value, low, high, n}`:
    `agreement`: scorer -> {`preference_accuracy`: estimate, other figures: estimates};
    a baseline's `reward_minus_this` is the reward's lead over it on the same comparisons;
    `ceiling`: estimate of how often one labeler agrees with another, `labelers`: the same by labeler;
    `judged`: counts of what was compared;
    `downstream`: {`arms`: training set -> {`pairs`: int, `image_to_text`, `text_to_image`: {`r1`, `r5`,
    `r10`: estimate}}, `minus`: training set -> direction -> estimates of the reward-filtered subset's lead
    over it, other plain values: shown as facts (steps, batch, test images)};
    `sample`: true when the data are generated; `data`: a sentence on what the data are;
    `provenance`: name -> value; `notes`: further sentences.
    """
    agreement = _ordered(report.get("agreement") or {}, SCORERS)
    downstream = report.get("downstream") or {}
    arms = _ordered(downstream.get("arms") or {}, ARMS)
    rows = [(SCORERS.get(name, name), figures) for name, figures in agreement.items()]
    named_arms = [(ARMS.get(name, name), arm) for name, arm in arms.items()]
    return render(
        "evaluation.html",
        sample=bool(report.get("sample")),
        data=report.get("data") or "",
        verdict=[verdicts.agreement(agreement), verdicts.downstream(arms, downstream.get("minus"))],
        judged=dict(report.get("judged") or {}),
        labelers=list((report.get("labelers") or {}).items()),
        minus=[(ARMS.get(name, name), found) for name, found in (downstream.get("minus") or {}).items()],
        agreement=rows,
        other_figures=_other_figures(rows),
        ceiling=_measured(report.get("ceiling")),
        forest=_forest(rows, _measured(report.get("ceiling"))),
        arms=named_arms,
        directions=list(DIRECTIONS.items()),
        recalls=list(zip(RECALLS, RECALL_NAMES, strict=True)),
        bars=_bars(named_arms),
        training=[(name, value) for name, value in downstream.items() if isinstance(value, str | int | float)],
        provenance=[(name, _plain(value)) for name, value in (report.get("provenance") or {}).items()],
        notes=list(report.get("notes") or []),
    )


def verdict(report: Mapping[str, Any]) -> str:
    """What the figures say, in one or two plain sentences."""
    found = report.get("downstream") or {}
    people = verdicts.agreement(report.get("agreement") or {})
    return f"{people} {verdicts.downstream(found.get('arms') or {}, found.get('minus'))}"


def downstream_picture(report: Mapping[str, Any]) -> bytes:
    """Retrieval per training set as a small PNG for an event."""
    arms = _ordered((report.get("downstream") or {}).get("arms") or {}, ARMS)
    groups = _groups([(ARMS.get(name, name), arm) for name, arm in arms.items()])
    return plots.draw_png(lambda figure: plots.grouped_bars(figure, groups, "recall, %"))


def _ordered(found: Mapping[str, Any], order: Mapping[str, str]) -> dict[str, Any]:
    """Known names first, in their order, then the others by name."""
    known = [name for name in order if name in found]
    return {name: found[name] for name in [*known, *sorted(set(found) - set(known))]}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _measured(estimate: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return estimate if verdicts.measured(estimate) else None


def _other_figures(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    names = [name for _, figures in rows for name, value in figures.items() if isinstance(value, Mapping)]
    return [name for name in dict.fromkeys(names) if name != "preference_accuracy"]


def _forest(rows: Sequence[tuple[str, Mapping[str, Any]]], ceiling: Mapping[str, Any] | None) -> Plot | None:
    figure = "preference_accuracy"
    drawn = [(name, figures[figure]) for name, figures in rows if figure in figures]
    if not drawn:
        return None
    if ceiling:
        drawn.append(("another labeler", ceiling))
    svg = plots.draw_svg(
        "forest",
        lambda canvas: plots.forest(canvas, drawn, reference=0.5, xlabel=AGREEMENT_AXIS),
        height=0.62 * len(drawn) + 1.2,
    )
    measured = [(name, entry["value"]) for name, entry in drawn if entry.get("value") is not None]
    said = "; ".join(f"{name} {100 * value:.1f} %" for name, value in measured)
    return Plot(
        svg,
        f"Agreement with people on held-out comparisons: {said}.",
        "Dot: share of held-out comparisons in which the scorer prefers what people preferred. "
        "Bar: 95 % interval. Dashed line: chance.",
    )


def _groups(arms: Sequence[tuple[str, Mapping[str, Any]]]) -> list[plots.Panel]:
    groups: list[plots.Panel] = []
    for direction, title in DIRECTIONS.items():
        found = {name: arm[direction] for name, arm in arms if direction in arm}
        series = {name: [recalls.get(recall) or {} for recall in RECALLS] for name, recalls in found.items()}
        if series:
            groups.append((title, RECALL_NAMES, series))
    return groups


def _bars(arms: Sequence[tuple[str, Mapping[str, Any]]]) -> Plot | None:
    groups = _groups(arms)
    if not groups:
        return None
    svg = plots.draw_svg("downstream", lambda canvas: plots.grouped_bars(canvas, groups, "recall, %"), height=3.8)
    return Plot(
        svg,
        "Retrieval recall at 1, 5 and 10 in both directions for each training set; all numbers in the table.",
        "Recall of the same small encoder, trained with the same compute on each training set and tested on "
        "the same clean held-out pairs. Whiskers: 95 % intervals.",
    )
