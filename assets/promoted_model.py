"""`promoted_model`: a pointer to the model that scores, moved only through the gate, and back by people."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from assets import keys
from assets.judged import training_data
from assets.reporting import materialized
from assets.reward_model import gate_from, metrics_table
from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.decisions import Decision
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.markdown import inert, table
from compalign_dagster.reward import promoted
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.reward.promotion import Claim, claims
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store
from resources.accelerator import Accelerator
from resources.storage import Storage

CODE_VERSION = 1
_USER_TAGS = ("dagster/user", "user")  # who launched the run, where a deployment knows it
_DECISIONS_SHOWN = 20


class Promotion(dg.Config):
    """What is decided, by whom and why; all of it is recorded."""

    reason: str = Field("no reason given", description="Why: a sentence for those who read the history.")
    by: str | None = Field(None, description="Who decides; the user that launched the run if unset.")
    model: str | None = Field(None, description="Beginning of a model version; the newest model if unset.")
    roll_back: bool = Field(False, description="Go back to the model that was promoted before, without a gate.")


@dg.asset(
    key=keys.PROMOTED_MODEL,
    deps=[keys.REWARD_MODEL],
    group_name=keys.REFEREE_GROUP,
    owners=keys.OWNERS,
    kinds={"json"},
    code_version=str(CODE_VERSION),
)
def promoted_model(
    context: dg.AssetExecutionContext,
    config: Promotion,
    storage: Storage,
    accelerator: Accelerator,
    settings: dg.ResourceParam[Settings],
) -> dg.MaterializeResult:
    """The model in use. Materialising this asset is the decision to promote the newest one.

    Refused unless it agrees with people better than chance, than every score it replaces and than the
    model in use, beyond the interval on held-out images, is calibrated across images and takes no
    shortcut. Promotion re-scores nothing by itself.
    """
    reason = Reason.given(config.by or _launched_by(context.run.tags), config.reason)
    store = storage.store
    if config.roll_back and config.model:
        raise InputError(
            "configuration of promoted_model",
            expected="roll_back, or a model to promote",
            found="both",
            remedy="A roll-back goes to the model before; to take another one, promote it.",
        )
    if config.roll_back:
        decision, moved = promoted.roll_back(store, reason), True
    else:
        decision, moved = promote(storage, accelerator, settings, promoted.candidate(store, config.model), reason)
    return report_of(storage, decision, moved=moved)


def report_of(storage: Storage, decision: Decision, *, moved: bool) -> dg.MaterializeResult:
    """What Dagster is told of the decision in force."""
    model = promoted.promoted(storage.store)
    return materialized(
        model,
        storage,
        reused=not moved,
        metadata={
            "model_version": model.facts["model_version"],
            "promotion": decision.version,
            "promoted": decision.decided,
            "by": decision.value.get("by", "unknown"),
            "why": decision.value.get("why", "unknown"),
            "claims": dg.MetadataValue.md(claims_table(decision.value.get("claims") or [])),
            "history": dg.MetadataValue.md(history_table(storage.store)),
            "held-out figures": dg.MetadataValue.md(metrics_table(model.facts["metrics"])),
        },
    )


@dataclass(frozen=True)
class Examined:
    """What the gate says of a model while `now` is in force."""

    model: Artifact
    now: Decision | None
    claims: list[Claim]
    against: dict[str, Any] | None  # the comparison with the promoted model; None where it is not asked for


def promote(
    storage: Storage, accelerator: Accelerator, settings: Settings, model: Artifact, reason: Reason
) -> tuple[Decision, bool]:
    """Move the pointer to `model` through the gate; nothing moves when it is there already."""
    now = promoted.in_force(storage.store)
    if now is not None and now.value["model_version"] == model.facts["model_version"]:
        return now, False
    found = examine(storage, accelerator, settings, model)
    return promoted.promote(storage.store, model, found.claims, reason, now=found.now, against=found.against), True


def examine(storage: Storage, accelerator: Accelerator, settings: Settings, model: Artifact) -> Examined:
    """Verify the model's files, compare it with the promoted one, and put every question of the gate."""
    from compalign_dagster.reward.folder import model_version

    now = promoted.in_force(storage.store)
    model.verify()
    with tempfile.TemporaryDirectory() as temporary:
        folder = model.checkout(Path(temporary, "model"))
        found = model_version(folder)
        if found != model.facts["model_version"]:
            raise CompalignError(
                f"reward model {model.uri}",
                expected=f"version {model.facts['model_version']}",
                found=f"version {found}",
                remedy="The store was altered; train the model again.",
            )
        gate = gate_from(settings)
        asked = now is not None and gate.min_gain > -1  # else the promoted model need not even load
        other = promoted.promoted(storage.store) if asked else None
        against = _compare(storage, accelerator, settings, model, folder, other) if other else None
    return Examined(model, now, claims(model.facts["metrics"], gate, against), against)


def _compare(
    storage: Storage, accelerator: Accelerator, settings: Settings, model: Artifact, folder: Path, other: Artifact
) -> dict[str, Any]:
    """Both models on the images that neither has learned from."""
    from compalign_dagster.reward.comparing import compare
    from compalign_dagster.reward.folder import load_model
    from compalign_dagster.reward.offline_encoders import remember_in

    remember_in(settings.features)
    annotations = annotations_of(model)
    held_out = _split(annotations, "test")
    learned = _split(annotations_of(other), "train", "validation")
    device = accelerator.pick()
    found = compare(
        load_model(folder, device=device),
        load_model(other.checkout(folder.with_name("promoted")), device=device),
        training_data(storage, annotations, []),
        held_out - learned,
        seed=settings.seed,
    )
    return {
        "model_version": other.facts["model_version"],
        **found,
        "images_left_out": len(held_out & learned),
    }


def annotations_of(model: Artifact) -> Artifact:
    """The judgements that a model was trained on."""
    kind = keys.COCO_HF_ANNOTATIONS.to_user_string()
    sources = [source for source in model.inputs if source.kind == kind]
    found = artifacts.load(model.store, sources[0].key) if sources else None
    if found is None:
        raise CompalignError(
            f"reward model {model.uri}",
            expected="the judgements that it was trained on, to know which images are held out",
            found="none in the store",
            remedy="Train a model on judgements of this store.",
        )
    return found


def _split(annotations: Artifact, *splits: str) -> set[str]:
    images = parquet.read(annotations.fetch("images.parquet")).select(["image_id", "split"]).to_pylist()
    return {row["image_id"] for row in images if row["split"] in splits}


def _launched_by(tags: Mapping[str, str]) -> str | None:
    return next((tags[name] for name in _USER_TAGS if tags.get(name)), None)


def claims_table(found: list[dict[str, str]]) -> str:
    """What was asked of a promoted model and what it showed, as Markdown."""
    rows = [(inert(item["claim"]), inert(item["figure"])) for item in found]
    return table(("claim", "figure"), rows) if found else "no gate: rolled back, or decided before claims were recorded"


def history_table(store: Store) -> str:
    """The newest decisions about the promoted model, newest first, as Markdown."""
    rows = []
    for made in list(reversed(promoted.history(store)))[:_DECISIONS_SHOWN]:
        value = {"action": "promote", "by": "unknown", "why": "unknown", **made.value}
        cells = [made.version, made.decided, value["action"], value["model_version"][:12], value["by"], value["why"]]
        rows.append([inert(cell) for cell in cells])
    return table(("decision", "when", "what", "model", "by", "why"), rows)
