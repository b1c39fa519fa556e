"""The figures of `result.json` as tables for people."""

from collections.abc import Mapping
from typing import Any

PUBLISHED = {"CLIPScore, published": 0.512, "FLEUR, published": 0.530}  # tau-c on all 5,664 pairs, not re-measured
SOURCES = {
    "crowd": "Flickr8k-CF, yes or no of strangers",
    "composite": "Composite, machine and human captions",
    "context": "context ratings of 18 photos in articles",
    "thumb": "THumB, captioning models",
    "cxc": "CxC, similarity",
    "vsr": "VSR, spatial relations true or false",
    "sugarcrepe": "SugarCrepe, caption over a hard negative",
    "near misses": "own caption over itself with one word changed",
}
FIGURES = {"tau_c": "tau-c", "preference_accuracy": "by single people", "human_auc": "AUC yes/no"}


def page(result: Mapping[str, Any]) -> str:
    """All tables."""
    setting = result["setting"]
    whole = result["runs"][0]
    parts = [
        f"{setting['folds']} folds by image, {setting['judged_images']:,} judged images of Flickr8k-Expert, "
        f"{setting['crawl_pairs']:,} crawl pairs without labels, backbone `{setting['backbone']}`, seed "
        f"{setting['seed']}; {result['minutes']['all']:.1f} minutes in all. Intervals are 95 %, drawn over images; "
        "differences are paired.",
        "## Flickr8k-Expert",
        _expert(whole["scorers"], setting["best_without_labels"]),
        "## Comparable across images",
        _across(whole["scorers"]),
        "## Other judgements",
        _others(result["runs"][1:], setting["best_without_labels"]),
        "## People, calibration, shortcuts",
        _people(result["evidence"]),
        _checks(result["evidence"]),
    ]
    return "\n\n".join(parts) + "\n"


def _expert(scorers: Mapping[str, Any], free: str) -> str:
    lines = [
        "| scorer | tau-c x 100 | over the contrastive cosine | over the best without labels | pairwise % "
        "| over the contrastive cosine | by single people % | n ratings | n pairs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, given in scorers.items():
        over = given.get("minus contrastive cosine", {})
        over_free = given.get(f"minus {free}", {})
        lines.append(
            f"| {_name(name, free)} | {both(given['tau_c'])} | {lead(over.get('tau_c'))} "
            f"| {lead(over_free.get('tau_c'))} | {both(given['mean_preference_accuracy'])} "
            f"| {lead(over.get('mean_preference_accuracy'))} | {_value(given['preference_accuracy'])} "
            f"| {count(given['tau_c'])} | {count(given['mean_preference_accuracy'])} |"
        )
    for name, value in PUBLISHED.items():
        lines.append(f"| *{name}, on all judged images: a reference line* | *{100 * value:.1f}* | | | | | | | |")
    return "\n".join(lines)


def _across(scorers: Mapping[str, Any]) -> str:
    lines = [
        "| scorer | AUC own captions against other images' | AUC people's yes against no |",
        "| --- | ---: | ---: |",
    ]
    for name, given in scorers.items():
        lines.append(f"| {name} | {both(given['cross_image_auc'])} | {both(given['human_auc'])} |")
    return "\n".join(lines)


def _others(runs: list[Mapping[str, Any]], free: str) -> str:
    best = "label_free" if free == "label_free" else free
    lines = [
        "| judgements | figure | contrastive cosine | best without labels | reward (expert labels) "
        "| reward, all sources | its lead over the best without labels | own criterion head | n |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        scorers = run["scorers"]
        for figure in run["figures"]:
            what = SOURCES[run["set"]] + (f": {run['criterion']}" if "criterion" in run else "")
            whole = scorers.get("reward, all sources", {})
            head = scorers.get(f"reward, all sources: {run.get('criterion')}", {})
            cells = [_value(scorers.get(name, {}).get(figure)) for name in ("contrastive cosine", best, "reward")]
            lines.append(
                f"| {what} | {FIGURES[figure]} | {' | '.join(cells)} | {both(whole.get(figure))} "
                f"| {lead(whole.get(f'minus {free}', {}).get(figure))} | {_value(head.get(figure))} "
                f"| {count(scorers['reward'][figure])} |"
            )
    return "\n".join(lines)


def _people(evidence: Mapping[str, Any]) -> str:
    lines = [
        "| person | agrees with another on the order of two captions | tau-c against the mean of the others |",
        "| --- | ---: | ---: |",
        f"| any | {both(evidence['ceiling'])} | |",
    ]
    for name, given in evidence["one_labeler_against_rest"].items():
        lines.append(f"| {name} | {both(given.get('agreement'))} | {both(given.get('tau_c'))} |")
    return "\n".join(lines)


def _checks(evidence: Mapping[str, Any]) -> str:
    lines = ["| check of the reward | figure | n | passed |", "| --- | ---: | ---: | --- |"]
    for name, check in evidence["shortcuts"].items():
        meaning = f"{name.replace('_', ' ')}: {check['meaning']}"
        passed = "yes" if check["passed"] else "no"
        lines.append(f"| {meaning} | {both(check['figure'])} | {count(check['figure'])} | {passed} |")
    for name, meaning in (("matched", "own and other captions"), ("human", "people's yes and no")):
        kept = evidence["across_images"][name]["kept"]
        lines.append(f"| separation of {meaning} that is left across images | {both(kept)} | {count(kept)} | |")
    error = evidence["calibration"]["ece"]
    lines.append(f"| expected calibration error of P(a person says it fits) | {both(error)} | {count(error)} | |")
    return "\n".join(lines)


def _name(name: str, free: str) -> str:
    return f"{name} (best without labels)" if name == free else name


def _value(estimate: Mapping[str, Any] | None) -> str:
    return "–" if not estimate or estimate["value"] is None else f"{100 * estimate['value']:.1f}"


def both(estimate: Mapping[str, Any] | None) -> str:
    """An estimate times 100 with its interval."""
    if not estimate or estimate["value"] is None or estimate["low"] is None:
        return _value(estimate)
    return f"{_value(estimate)} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def lead(estimate: Mapping[str, Any] | None) -> str:
    """A difference times 100 with its interval, both signed."""
    if not estimate or estimate["value"] is None or estimate["low"] is None:
        return "–"
    return f"{100 * estimate['value']:+.1f} [{100 * estimate['low']:+.1f}, {100 * estimate['high']:+.1f}]"


def count(estimate: Mapping[str, Any] | None) -> str:
    """How many rows an estimate is over."""
    return f"{estimate['n']:,}" if estimate else "0"
