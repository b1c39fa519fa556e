"""The claim that a cascade changes few decisions of `filtered_dataset`: only the cut tells which rejects were wrong."""

from typing import Any

import dagster as dg

from assets import keys
from compalign_dagster import artifacts
from compalign_dagster.artifacts import Artifact
from compalign_dagster.scoring.auditing import judged
from compalign_dagster.scoring.cascade import BOUND
from compalign_dagster.selection.cuts import cuts_of

_LEDGER = keys.SCORE_LEDGER.to_user_string()

SPEC = dg.AssetCheckSpec(
    asset=keys.FILTERED_DATASET,
    name="cascade_changes_few_decisions",
    description="Decisions that differ from those of scoring every pair are at most the share that the cascade's "
    f"plan allows ({BOUND:.0%} by default), by rewards of audited rejects and the cut; the upper end of the 95 % "
    "interval decides. It does not hold the dataset back: planning again starts from its cut.",
)


def changes_few_decisions(artifact: Artifact) -> dg.AssetCheckResult:
    """A warning while too few rejects were audited to tell; an error where more decisions differ than are allowed."""
    cuts = cuts_of(artifact)
    (key,) = (source.key for source in artifact.inputs if source.kind == _LEDGER)
    ledger = artifacts.load(artifact.store, key)
    if ledger is None:
        return _result(False, f"no verdict: {key} is not in the store")
    found = judged(ledger, cuts.model_version, cuts.of)
    if found is None:
        return _result(True, "no cascade was used")
    audit, allowed = found
    return _result(
        audit.passed,
        audit.reason,
        proven=audit.wrong.low > allowed,
        allowed=allowed,
        wrong_at_most=float(audit.wrong.high),
        audited=audit.wrong.n,
    )


def _result(passed: bool, verdict: str, *, proven: bool = False, **facts: Any) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=SPEC.name,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if proven else dg.AssetCheckSeverity.WARN,
        metadata={"verdict": verdict, **facts},
    )
