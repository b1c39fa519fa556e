"""What an audit page says of a version: sources, losses, judges, decisions, limits. Plain JSON values.

What belongs here: reading them from the version and the store, bounded whatever the crawl's size. What does not: the
page (`pages/audit.py`), and proof (`verify.py`).
"""

from collections.abc import Iterator
from typing import Any

import polars as pl

from compalign_dagster.crawl.batches import read_log
from compalign_dagster.lineage import models
from compalign_dagster.lineage.redaction import redactions
from compalign_dagster.selection import blocks, in_force
from compalign_dagster.selection.reasons import MEANING
from compalign_dagster.selection.version import Version

SHOWN = 100
"""Rows of any table."""


def audit_facts(version: Version, name: str) -> dict[str, Any]:
    """The facts of a version called `name` (the beginning of its work key), which need not be published yet."""
    store, facts = version.store, version.facts
    used = version.shards["model_version"].unique().sort().to_list()
    listed = blocks.entries(blocks.in_force(store))
    made = {
        "version": name,
        "store": store.url,
        **{key: facts[key] for key in ("pairs", "kept", "dropped", "quarantined")},
        "coverage": facts.get("coverage"),
        "corpora": _summed(version.lists, "corpus"),
        "batches": _summed(version.lists, "batch")[:SHOWN],
        "batches_in_all": version.lists["batch"].n_unique(),
        "batches_in_log": len(read_log(store)),
        "shards": version.shards.height,
        "reasons": [
            {"reason": reason, "pairs": count, "meaning": MEANING.get(reason, "")}
            for reason, count in facts["dropped_by_reason"].items()
        ],
        "cuts": version.cuts.head(SHOWN).to_dicts(),
        "policy": version.policy.model_dump(mode="json", exclude_defaults=True),
        "adopted": [
            {"policy": fact.version, "decided": fact.decided, "by": fact.by, "why": fact.why}
            for fact in in_force.history(store)
            if fact.policy == version.policy
        ],
        "models": [models.of_version(store, one) for one in used],
        "blocked": listed.num_rows,
        "redacted_files": len(redactions(store)),
    }
    return {**made, "limits": list(_limits(made))}


def _summed(lists: pl.DataFrame, name: str) -> list[dict[str, Any]]:
    """Pairs and kept pairs by a column of LISTS, the largest first."""
    found = lists.group_by(name).agg(pairs=pl.col("rows").sum(), kept=pl.col("kept").sum())
    return found.sort(["pairs", name], descending=[True, False]).to_dicts()


def _limits(made: dict[str, Any]) -> Iterator[str]:
    """What the version does not hold or nobody can say, one sentence each."""
    if made["coverage"] is not None and made["coverage"] < 1:
        yield f"The model has scored {made['coverage']:.1%} of the live shards; the pairs of the others are not in it."
    if made["quarantined"]:
        yield f"{made['quarantined']:,} indexed pairs could not be scored; no decision was made about them."
    for cut in made["cuts"]:
        if cut["short"]:
            yield f"Budget {cut['budget']} keeps {cut['kept']:,} of {cut['k']:,}: the rules left no more candidates."
    rejected = next((row["pairs"] for row in made["reasons"] if row["reason"] == "cascade_reject"), 0)
    if rejected:
        yield f"{rejected:,} pairs were turned down by a cheaper model and have no reward of the one named here."
    if not made["adopted"]:
        yield "No decision on record put this policy in force: the version is a trial."
    for model in made["models"]:
        if not model["promotions"]:
            yield f"No promotion of model {model['model_version'][:12]} is on record."
        if any("not recorded" in item.get("guidelines", ()) for item in model["trained_on"]):
            yield "Some judgements do not say by which guideline they were made."
    if made["redacted_files"]:
        yield f"{made['redacted_files']:,} files were redacted on request: what they held cannot be shown any more."
    yield "A reward is one model's estimate of what a few people prefer. It says nothing of rights, consent or truth."
    yield "Hosts and languages are taken from the crawl as found; a URL is not proof of where an image comes from."
