"""What a version did, in counts that add up: by reason, by budget, by corpus."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import ConservationError
from compalign_dagster.selection import reasons
from compalign_dagster.selection.policy import Policy


def accounts(
    lists: Mapping[str, Artifact], listed: pl.DataFrame, cuts: pl.DataFrame, capped: pl.DataFrame, policy: Policy
) -> dict[str, Any]:
    """JSON values: `pairs` = `kept` + `dropped` + `quarantined`, `dropped_by_reason`, `budgets`, `corpora`.

    Raises `ConservationError` when they do not add up.
    """
    pairs = sum(artifact.facts["pairs"] for artifact in lists.values())
    quarantined = sum(artifact.facts["quarantined"] for artifact in lists.values())
    dropped = Counter[str]()
    for artifact in lists.values():
        dropped.update(artifact.facts["reasons"])
    dropped.update(dict(capped.group_by("reason").len().iter_rows()))
    candidates = _candidates(listed, capped)
    for row in cuts.iter_rows(named=True):
        left = candidates.get(row["budget"], 0) - row["kept"]
        if row["k"] == 0:
            dropped[reasons.NO_BUDGET] += left
        else:
            dropped[reasons.TIED_AT_CUT] += row["tied_at_cut"]
            dropped[reasons.BELOW_CUT] += left - row["tied_at_cut"]
    kept = int(listed["kept"].sum())
    by_reason = {name: dropped[name] for name in reasons.ORDER if dropped[name]}
    if kept != cuts["kept"].sum() or pairs != kept + sum(by_reason.values()) + quarantined:
        raise ConservationError(
            "selection",
            expected=f"{pairs} pairs = kept + dropped + quarantined, {cuts['kept'].sum()} of them kept",
            found=f"{kept} kept, {sum(by_reason.values())} dropped, {quarantined} quarantined",
            remedy="This is a defect of the selection; please report it.",
        )
    corpora = listed.group_by("corpus").agg(pairs=pl.col("rows").sum(), kept=pl.col("kept").sum()).sort("corpus")
    asked = {*policy.per_corpus, *policy.count_per_corpus}
    return {
        "pairs": pairs,
        "scored": pairs - quarantined - by_reason.get(reasons.CASCADE_REJECT, 0),
        "kept": kept,
        "dropped": sum(by_reason.values()),
        "quarantined": quarantined,
        "dropped_by_reason": by_reason,
        "budgets": cuts.to_dicts(),
        "budgets_without_pairs": sorted(asked - set(corpora["corpus"])),
        "corpora": {row["corpus"]: {"pairs": row["pairs"], "kept": row["kept"]} for row in corpora.to_dicts()},
    }


def _candidates(listed: pl.DataFrame, capped: pl.DataFrame) -> dict[str, int]:
    """How many pairs of each budget neither a rule nor a cap takes away."""
    budget_of = dict(listed.select("corpus", "budget").iter_rows())
    counts = Counter(
        {budget: eligible for budget, eligible in listed.group_by("budget").agg(pl.col("eligible").sum()).iter_rows()}
    )
    for corpus, taken in capped.group_by("corpus").len().iter_rows():
        counts[budget_of[corpus]] -= taken
    return counts
