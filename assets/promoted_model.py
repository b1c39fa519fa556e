"""`promoted_model`: a pointer to the model that scores, moved only through the gate."""

import dagster as dg

from assets import keys
from assets.reporting import materialized
from assets.reward_model import KIND as MODEL_KIND
from assets.reward_model import gate_from, metrics_table
from compalign_dagster import artifacts, decisions, latest
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import CompalignError, PromotionRefusedError
from compalign_dagster.reward.promotion import judge
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store
from resources.storage import Storage

DECISION = keys.PROMOTED_MODEL.to_user_string()
CODE_VERSION = 1


@dg.asset(
    key=keys.PROMOTED_MODEL,
    deps=[keys.REWARD_MODEL],
    group_name=keys.REFEREE_GROUP,
    owners=keys.OWNERS,
    kinds={"json"},
    code_version=str(CODE_VERSION),
)
def promoted_model(storage: Storage, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult:
    """The model in use. Materialising this asset is the decision to promote the newest one.

    Refused unless held-out agreement with people is above chance beyond its interval and rewards are
    comparable across images. Promotion re-scores nothing by itself.
    """
    model = latest.require(storage.store, MODEL_KIND)
    decision, moved = promote(storage.store, model, settings)
    return materialized(
        model,
        storage,
        reused=not moved,
        metadata={
            "model_version": model.facts["model_version"],
            "promotion": decision.version,
            "promoted": decision.decided,
            "held-out figures": dg.MetadataValue.md(metrics_table(model.facts["metrics"])),
        },
    )


def promote(store: Store, model: Artifact, settings: Settings) -> tuple[decisions.Decision, bool]:
    """Move the pointer to `model` through the gate; nothing moves when it is there already."""
    now = decisions.current(store, DECISION)
    if now is not None and now.value["manifest"] == model.manifest_key:
        return now, False
    refusals = judge(model.facts["metrics"], gate_from(settings))
    if refusals:
        raise PromotionRefusedError(
            f"reward model {model.facts['model_version'][:16]}",
            expected="every claim of the promotion gate to hold",
            found=" ".join(refusals),
            remedy="Look at the model's page; add judgements or train longer, then promote again.",
        )
    value = {
        "manifest": model.manifest_key,
        "model_version": model.facts["model_version"],
        "data_version": model.data_version,
        "metrics": model.facts["metrics"],
    }
    return decisions.decide(store, DECISION, value, after=now.version if now else 0), True


def promoted(store: Store) -> Artifact:
    """The model in use; an error that says how to promote one otherwise."""
    now = decisions.current(store, DECISION)
    found = artifacts.load(store, now.value["manifest"]) if now else None
    if found is None:
        raise CompalignError(
            f"promoted model in {store.url}",
            expected="a promoted reward model",
            found="none",
            remedy="Materialise reward_model, then promoted_model.",
        )
    return found


def promotions(store: Store) -> list[Artifact]:
    """Every model that was ever promoted, newest promotion first, each once."""
    seen: dict[str, Artifact] = {}
    for decision in reversed(decisions.history(store, DECISION)):
        model = artifacts.load(store, decision.value["manifest"])
        if model is not None:
            seen.setdefault(model.manifest_key, model)
    return list(seen.values())
