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
from compalign_dagster.crawl.live import indexed_shards
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
    "pretrain_steps": "pretrain_steps",
    "train_steps": "steps",
}


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
            "held-out figures": dg.MetadataValue.md(metrics_table(metrics)),
        },
    )


def _is_estimate(figure: Any) -> bool:
    return isinstance(figure, dict) and figure.get("value") is not None


def metrics_table(metrics: dict[str, Any]) -> str:
    """Every figure that has an interval, as Markdown."""
    lines = ["| figure | value | 95 % interval | n |", "| --- | ---: | --- | ---: |"]
    for name, figure in metrics.items():
        if _is_estimate(figure):
            lines.append(
                f"| {name} | {figure['value']:.3f} | {figure['low']:.3f} to {figure['high']:.3f} | {figure['n']:,} |"
            )
    return "\n".join(lines)


def config_from(settings: Settings) -> RewardConfig:
    """The training configuration that the settings describe; unset ones are the backbone's defaults."""
    given = {name: getattr(settings, setting) for setting, name in _MODEL_SETTINGS.items()}
    return reward_config({name: value for name, value in given.items() if value is not None})


def gate_from(settings: Settings) -> Gate:
    """The promotion gate that the settings describe."""
    return Gate(min_cross_image_auc=settings.min_cross_image_auc)


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
    crawl = indexed_shards(store, FIRST_BATCH)
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
        from compalign_dagster.reward.folder import model_version, save_model
        from compalign_dagster.reward.training import train

        data = training_data(storage, annotations, crawl)
        trained = train(config, data, device=accelerator.pick(), progress=logged(KIND))
        inputs = [annotations.as_input()]
        if crawl:
            inputs.append(latest.require(store, keys.RAW_CRAWL.to_user_string(), FIRST_BATCH).as_input())
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            save_model(trained.model, folder, metrics=trained.metrics, record=trained.record)
            files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
            return artifacts.publish(
                store,
                KIND,
                key,
                files,
                code_version=CODE_VERSION,
                inputs=inputs,
                config=config.as_dict(),
                facts={
                    "model_version": model_version(folder),
                    "metrics": trained.metrics,
                    "device": accelerator.pick(),
                },
                views=_views(trained.metrics, trained.record, gate_from(settings)),
            )

    return latest.reuse_or_make(store, KIND, key, make)


def _views(metrics: dict, record: dict, gate: Gate) -> dict[str, bytes]:
    from compalign_dagster.pages.reward import curves_picture, reward_page

    curves = json.loads(json.dumps(record["curves"]))
    return {
        PAGE: reward_page(metrics, curves, claims(metrics, gate)),
        PLOT: curves_picture(curves),
    }
