"""`reward_model`: the referee, trained on human comparisons with anchors across images."""

import json
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg

from assets import keys
from assets.judged import training_data
from assets.needs import TRAINING
from assets.partitions import FIRST_BATCH
from assets.progress import logged
from assets.reporting import PAGE, PLOT, materialized
from compalign_dagster import artifacts, latest
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import earliest_indexed
from compalign_dagster.markdown import table
from compalign_dagster.reward.config import CODE_VERSION, RewardConfig, reward_config
from compalign_dagster.reward.promotion import Gate, claims
from compalign_dagster.settings import Settings
from compalign_dagster.versions import digest_file, digest_json, work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

KIND = keys.REWARD_MODEL.to_user_string()
_MODEL_SETTINGS = {  # setting -> name in RewardConfig
    "backbone": "backbone",
    "model": "model",
    "revision": "revision",
    "seed": "seed",
    "image_size": "image_size",
    "caption_tokens": "max_caption_tokens",
    "learning_rate": "lr",
    "frozen_share": "frozen_share",
    "batch_images": "batch_images",
    "accumulation": "accumulation",
    "processes": "processes",
    "train_precision": "precision",
    "pretrain_steps": "pretrain_steps",
    "train_steps": "steps",
    "patience": "patience",
    "anchor_weight": "anchor_weight",
    "rating_weight": "rating_weight",
    "criteria_weight": "criteria_weight",
}
_VALIDATED = ("validation_accuracy", "validation_loss")
_ROWS = 20  # of a table in an event


@dg.asset(
    key=keys.REWARD_MODEL,
    deps=[
        keys.COCO_HF_ANNOTATIONS,
        dg.AssetDep(keys.RAW_CRAWL, partition_mapping=dg.SpecificPartitionsPartitionMapping([FIRST_BATCH])),
    ],
    group_name=keys.REFEREE_GROUP,
    owners=keys.OWNERS,
    kinds={"pytorch", "huggingface"},
    code_version=str(CODE_VERSION),
    pool=TRAINING.dagster_pool(),
    op_tags=TRAINING.k8s_op_tags(),
)
def reward_model(
    storage: Storage, accelerator: Accelerator, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult:
    """A network that gives an image and a caption one number, larger when people would prefer it.

    Pairwise ranking loss within an image fixes the order of its captions; anchors across images fix
    the scale, so that one cut can hold for a whole crawl. Held-out figures are on its page.
    """
    artifact, reused = publish_reward_model(storage, accelerator, settings)
    metrics = artifact.facts["metrics"]
    return materialized(
        artifact,
        storage,
        reused=reused,
        metadata={
            "model_version": artifact.facts["model_version"],
            "backbone": settings.backbone,
            "device": artifact.facts["device"],
            **{name: figure["value"] for name, figure in metrics.items() if _is_estimate(figure)},
            **{name: metrics[name] for name in _VALIDATED if metrics.get(name) is not None},
            **{name: count for name, count in artifact.facts["counts"].items() if name.endswith("_over_long")},
            "held-out figures": dg.MetadataValue.md(metrics_table(metrics)),
            "validations": dg.MetadataValue.md(validations_table(artifact.facts["validations"])),
        },
    )


def _is_estimate(figure: Any) -> bool:
    return isinstance(figure, dict) and figure.get("value") is not None


def metrics_table(metrics: dict[str, Any]) -> str:
    """Every figure that has an interval, as Markdown."""
    rows = [
        (name, f"{found['value']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}", f"{found['n']:,}")
        for name, found in metrics.items()
        if _is_estimate(found)
    ]
    return table(("figure", "value", "95 % interval", "n"), rows)


def validations_table(validations: list[dict[str, Any]]) -> str:
    """What was watched while the model trained, as Markdown: at most 20 validations, the last among them."""
    if not validations:
        return "no image was held out for validation"
    shown = validations[:: -(-len(validations) // _ROWS)]
    shown += [] if shown[-1] is validations[-1] else [validations[-1]]
    names = [name for name in validations[0] if any(entry[name] is not None for entry in validations)]
    cells = ([f"{entry[name]:,}" if name == "step" else _number(entry[name]) for name in names] for entry in shown)
    return table(names, cells)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def config_from(settings: Settings) -> RewardConfig:
    """The training configuration that the settings describe; unset ones are the backbone's defaults."""
    given = {name: getattr(settings, setting) for setting, name in _MODEL_SETTINGS.items()}
    return reward_config({name: value for name, value in given.items() if value is not None})


def gate_from(settings: Settings) -> Gate:
    """The promotion gate that the settings describe."""
    return Gate(
        min_cross_image_auc=settings.min_cross_image_auc,
        min_gain=settings.min_gain,
        max_ece=settings.max_ece,
        told=tuple(settings.shortcuts_told),
    )


def _local_weights(model: str | None) -> str | None:
    """Digest of a pre-trained model's local folder: its path alone would not tell that it was replaced."""
    folder = Path(model or "")
    if model is None or not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_json({path.relative_to(folder).as_posix(): digest_file(path) for path in files})


def publish_reward_model(storage: Storage, accelerator: Accelerator, settings: Settings) -> tuple[Artifact, bool]:
    """The model of the newest annotations, trained unless it already was."""
    store, config = storage.store, config_from(settings)
    annotations = latest.require(store, keys.COCO_HF_ANNOTATIONS.to_user_string())
    crawl = earliest_indexed(store)
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[
            annotations.data_version,
            [[shard.shard, shard.index_version] for shard in crawl],
            _local_weights(config.model),
        ],
        config=config.as_dict(),
    )

    def make() -> Artifact:
        from compalign_dagster.evaluation.evidence import evidence_of
        from compalign_dagster.reward.folder import model_version, save_model
        from compalign_dagster.reward.offline_encoders import remember_in
        from compalign_dagster.reward.training import train

        remember_in(settings.features)
        data = training_data(storage, annotations, crawl)
        going = settings.checkpoints / key  # on this machine: a run that was killed there goes on
        trained = train(config, data, device=accelerator.pick(), progress=logged(KIND), checkpoints=going)
        evidence = evidence_of(trained.model, data, split="test", before=trained.before, seed=config.seed)
        metrics = {**trained.metrics, "evidence": evidence}
        inputs = [annotations.as_input()]
        if crawl:
            inputs.append(latest.require(store, keys.RAW_CRAWL.to_user_string(), crawl[0].batch).as_input())
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            save_model(trained.model, folder, metrics=metrics, record=trained.record)
            files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
            artifact = artifacts.publish(
                store,
                KIND,
                key,
                files,
                code_version=CODE_VERSION,
                inputs=inputs,
                config=config.as_dict(),
                facts={
                    "model_version": model_version(folder),
                    "metrics": metrics,
                    "validations": trained.record["curves"]["validation"],
                    "counts": trained.record["counts"],
                    "device": accelerator.pick(),
                },
                views=_views(metrics, trained.record, gate_from(settings)),
            )
        trained.discard_checkpoints()
        return artifact

    return latest.reuse_or_make(store, KIND, key, make)


def _views(metrics: dict, record: dict, gate: Gate) -> dict[str, bytes]:
    from compalign_dagster.pages.reward import curves_picture, reward_page

    curves = json.loads(json.dumps(record["curves"]))
    return {
        PAGE: reward_page(metrics, curves, claims(metrics, gate)),
        PLOT: curves_picture(curves),
    }
