"""Claims about `reward_model`: rewards vary, and follow people on images it never saw."""

import dagster as dg

from assets import keys
from assets.reward_model import KIND, gate_from
from compalign_dagster import latest
from compalign_dagster.reward.promotion import claims
from compalign_dagster.settings import Settings
from resources.storage import Storage


@dg.asset_check(
    asset=keys.REWARD_MODEL,
    name="would_pass_the_promotion_gate",
    description="Held-out agreement above chance beyond its interval; rewards comparable across images.",
)
def would_pass_the_gate(storage: Storage, settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
    """A warning here is a refusal at `promoted_model`."""
    metrics = latest.require(storage.store, KIND).facts["metrics"]
    results = claims(metrics, gate_from(settings))
    failed = [text for text, passed, _ in results if not passed]
    lines = [f"- {'holds' if passed else 'FAILS'}: {text} ({figure})" for text, passed, figure in results]
    return dg.AssetCheckResult(
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(failed) or "every claim holds",
        metadata={"claims": dg.MetadataValue.md("\n".join(lines))},
    )
