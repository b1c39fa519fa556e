"""The figures of `result.json` as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.uncertainty.measure import LEVELS


def page(result: Mapping[str, Any]) -> str:
    """All tables."""
    setting = result["setting"]
    fits = result["runs"]
    precisions = ", ".join(f"{fit['precision']:.3g}" for fit in fits)
    effective = sum(fit["effective_weights"] for fit in fits) / len(fits)
    minutes = f"; {result['minutes']:.1f} minutes in all" if "minutes" in result else ""
    parts = [
        f"{setting['folds']} folds by image, {setting['images']:,} judged images of Flickr8k-Expert, "
        f"{setting['comparisons']:,} answers of single people, backbone `{setting['backbone']}`, seed "
        f"{setting['seed']}{minutes}. Intervals in brackets are 95 %, drawn over images; differences are paired. Prior "
        f"precision by fold: {precisions}; on average the judgements decide {effective:.0f} of "
        f"{fits[0]['weights']} weights.",
        "## Coverage",
        _coverage(result["coverage"]),
        "## Do unsure comparisons go wrong more often?",
        _errors(result["errors"]),
        "## The chance that a caption is preferred",
        _probability(result["probability"]),
        "## Choosing what to label",
        _learning(result["learning"]),
    ]
    return "\n\n".join(parts) + "\n"


def _coverage(entries: Sequence[Mapping[str, Any]]) -> str:
    heads = " | ".join(f"{100 * level:.0f} % interval" for level in LEVELS)
    lines = [
        f"| trained again on | interval of | {heads} | deviation claimed | met | times as wide |",
        "| --- | --- | " + "---: | " * (len(LEVELS) + 3),
    ]
    for entry in entries:
        cells = " | ".join(_percent(entry["coverage"][str(level)]) for level in LEVELS)
        lines.append(
            f"| {entry['how']} | {entry['what']} | {cells} | {entry['claimed_std']:.2f} | {entry['met_std']:.2f} "
            f"| {entry['times_as_wide']:.1f} |"
        )
    return "\n".join(line.rstrip() for line in lines)


def _errors(errors: Mapping[str, Any]) -> str:
    quintiles = errors["agreement_by_quintile"]
    count = len(next(iter(quintiles.values())))
    lines = [
        "| answers sorted by | AUC of right against wrong answers | "
        + " | ".join(f"right % in fifth {at + 1}" for at in range(count)) + " |",
        "| --- | " + "---: | " * (count + 1),
    ]  # fmt: skip
    for name, auc in errors["auc_of_right_answers"].items():
        cells = " | ".join(_value(figure) for figure in quintiles[name])
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {_percent(auc)} | {cells} |")
    lead = errors["auc_lead_of_std"]
    lines += ["", f"The AUC with the deviation minus that of the difference alone: {_signed(lead, 100, 1)}."]
    return "\n".join(line.rstrip() for line in lines)


def _probability(told: Mapping[str, Any]) -> str:
    lines = [
        "| chance | log-loss | expected calibration error | predicted for its own side % | right % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in ("without std", "with std"):
        given = told[name]
        lines.append(
            f"| {name} | {_plain(given['log_loss'])} | {_percent(given['ece'])} "
            f"| {100 * given['mean_predicted']:.1f} | {100 * given['mean_right']:.1f} |"
        )
    return "\n".join(
        [*lines, "", f"Log-loss with minus without: {_signed(told['log_loss_with_minus_without'], 1, 4)}."]
    )


def _learning(entries: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| questions | chosen | right % | over random | log-loss | over random |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for entry in entries:
        for name, given in entry["strategies"].items():
            leads = (
                ("–", "–")
                if name == "random"
                else (_signed(given["agreement_minus_random"], 100, 2), _signed(given["log_loss_minus_random"], 1, 4))
            )
            lines.append(
                f"| {entry['budget']} | {name} | {_percent(given['agreement'])} | {leads[0]} "
                f"| {_plain(given['log_loss'])} | {leads[1]} |"
            )
    return "\n".join(lines)


def _value(estimate: Mapping[str, Any]) -> str:
    return "–" if estimate["value"] is None else f"{100 * estimate['value']:.1f}"


def _percent(estimate: Mapping[str, Any]) -> str:
    if estimate["low"] is None:
        return _value(estimate)
    return f"{_value(estimate)} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def _plain(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"


def _signed(estimate: Mapping[str, Any], scale: float, digits: int) -> str:
    value, low, high = (f"{scale * estimate[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
