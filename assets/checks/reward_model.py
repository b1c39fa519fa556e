"""Claims about `reward_model`: rewards vary, follow people on images it never saw, and mean the same on all of them."""

import dagster as dg

from assets import keys
from assets.reward_model import KIND, gate_from
from compalign_dagster import latest
from compalign_dagster.markdown import inert, table
from compalign_dagster.reward.promotion import claims
from compalign_dagster.settings import Settings
from resources.storage import Storage


@dg.asset_check(
    asset=keys.REWARD_MODEL,
    name="would_pass_the_promotion_gate",
    description="Better than chance and than the scores it replaces, beyond the interval; calibrated across images; "
    "no shortcut. The comparison with the promoted model is made when it is to be promoted.",
)
def would_pass_the_gate(storage: Storage, settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
    """A warning here is a refusal at `promoted_model`."""
    results = claims(latest.require(storage.store, KIND).facts["metrics"], gate_from(settings))
    failed = [claim for claim, passed, _ in results if not passed]
    rows = [(inert(claim), "holds" if passed else "**fails**", inert(figure)) for claim, passed, figure in results]
    return dg.AssetCheckResult(
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(failed) or "every claim holds",
        metadata={"claims": dg.MetadataValue.md(table(("claim", "outcome", "figure"), rows))},
    )


@dg.asset_check(
    asset=keys.REWARD_MODEL,
    name="rewards_compare_across_images",
    blocking=True,
    description="A model that ranks the captions of one image well must give rewards that mean the same on every "
    "image: one cut over a crawl relies on it.",
)
def rewards_compare_across_images(storage: Storage) -> dg.AssetCheckResult:
    """An error where matched captions win within images and the rewards do not compare across them.

    Where they do not win within images either there is nothing to compare yet: a warning, and the gate refuses.
    """
    from compalign_dagster.reward.metrics import across_images

    metrics = latest.require(storage.store, KIND).facts["metrics"]
    compares, why = across_images(metrics)
    matched = ((metrics.get("evidence") or {}).get("across_images") or {}).get("matched") or {}
    low = (matched.get("within") or {}).get("low")
    ranks = low is not None and low > 0.5
    return dg.AssetCheckResult(
        passed=compares,
        severity=dg.AssetCheckSeverity.ERROR if ranks else dg.AssetCheckSeverity.WARN,
        description=why,
    )
