"""`eval_report`: did the referee agree with people, and was its choice worth anything downstream?"""

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets import keys
from assets.judged import crawl_shards, training_data
from assets.needs import EVALUATION
from assets.progress import logged
from assets.reporting import PAGE, PLOT, materialized
from compalign_dagster import artifacts, latest
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.crawl.index import CODE_VERSION as INDEX
from compalign_dagster.crawl.shards import Shard, is_shard
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.selection import current
from compalign_dagster.settings import Settings
from compalign_dagster.versions import canonical_json, work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

if TYPE_CHECKING:
    from compalign_dagster.evaluation.downstream import DownstreamConfig

KIND = keys.EVAL_REPORT.to_user_string()
CODE_VERSION = 3
_DATA = {
    "sample": "Rendered scenes with simulated labelers: a sample that shows the pipeline at work.",
    "photos": "Real photographs with real human judgements; the crawl's noise was added on purpose.",
}

log = logging.getLogger(f"compalign_dagster.{__name__}")


@dg.asset(
    key=keys.EVAL_REPORT,
    deps=[keys.FILTERED_DATASET, keys.EVALUATION_SHARDS],
    group_name=keys.DATASET_GROUP,
    owners=keys.OWNERS,
    kinds={"html", "pytorch"},
    code_version=str(CODE_VERSION),
    pool=EVALUATION.dagster_pool(),
    op_tags=EVALUATION.k8s_op_tags(),
)
def eval_report(
    storage: Storage, accelerator: Accelerator, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult:
    """Agreement with people on held-out images, and retrieval after equal training on each subset.

    The reward stands beside cosine, ITM and caption length; the reward-filtered subset beside everything,
    a random and a cosine-filtered subset of equal size, each trained with the same compute.
    """
    artifact, reused = publish_report(storage, accelerator, settings)
    report = artifact.facts["report"]
    return materialized(
        artifact,
        storage,
        reused=reused,
        metadata={
            **headline(report),
            "evaluation images left out because trained on": report["leakage"]["removed_pairs"],
        },
    )


def headline(report: dict[str, Any]) -> dict[str, float]:
    """The figures worth a time series: agreement by scorer, R@1 by training set, both in 0 to 1."""
    agreement = {
        f"agreement: {name}": figures["preference_accuracy"]["value"] for name, figures in report["agreement"].items()
    }
    retrieval = {
        f"R@1 text to image: {name}": arm["text_to_image"]["r1"]["value"]
        for name, arm in report["downstream"]["arms"].items()
    }
    return {**agreement, **retrieval}


def evaluation_shards(storage: Storage) -> list[Shard]:
    """The clean held-out shards; an error that says where to put some otherwise."""
    store = storage.evaluation
    shards = [Shard(entry.key, store, entry.key) for entry in store.list() if is_shard(entry.key)]
    if not shards:
        raise CompalignError(
            f"evaluation shards in {storage.evaluation_url}",
            expected="at least one shard of clean pairs",
            found="none",
            remedy="Put shards there or set COMPALIGN_EVALUATION.",
        )
    return shards


def publish_report(storage: Storage, accelerator: Accelerator, settings: Settings) -> tuple[Artifact, bool]:
    """The report on the current dataset."""
    from compalign_dagster.evaluation.downstream import CODE_VERSION as DOWNSTREAM
    from compalign_dagster.evaluation.downstream import DownstreamConfig

    if settings.evaluation_encoder != "small":
        raise InputError(
            "setting COMPALIGN_EVALUATION_ENCODER",
            expected="small, the only network this release trains downstream",
            found=settings.evaluation_encoder,
            remedy="Set it to small, or train the filtered dataset with your own BLIP code.",
        )
    store = storage.store
    dataset = current.read(store) or latest.require(store, keys.FILTERED_DATASET.to_user_string())
    annotations = latest.require(store, keys.COCO_HF_ANNOTATIONS.to_user_string())
    config = DownstreamConfig(images="frozen" if settings.backbone == "offline" else "pixels")
    if settings.evaluation_steps is not None:
        config = replace(config, steps=settings.evaluation_steps)
    held_out = evaluation_shards(storage)
    stamps = [(shard.name, storage.evaluation.stat(shard.key)) for shard in held_out]
    choice = {
        **vars(config),
        "seeds": list(config.seeds),
        "seed": settings.seed,
        "downstream": DOWNSTREAM,
        "index": INDEX,
    }
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[
            dataset.data_version,
            annotations.data_version,
            dataset.facts["model_version"],
            [[name, stamp.size, stamp.stamp] for name, stamp in stamps],
        ],
        config=choice,
    )

    def make() -> Artifact:
        report = _evaluate(storage, accelerator, settings, dataset, annotations, held_out, config)
        return artifacts.publish(
            store,
            KIND,
            key,
            {"metrics.json": canonical_json(report)},
            code_version=CODE_VERSION,
            inputs=[
                dataset.as_input(),
                annotations.as_input(),
                *(Input("evaluation_shard", name, stamp.stamp) for name, stamp in stamps),
            ],
            config=choice,
            facts={"report": report},
            views=_views(settings, dataset, report),
        )

    return latest.reuse_or_make(store, KIND, key, make)


def _evaluate(
    storage: Storage,
    accelerator: Accelerator,
    settings: Settings,
    dataset: Artifact,
    annotations: Artifact,
    held_out: list[Shard],
    config: "DownstreamConfig",
) -> dict[str, Any]:
    from compalign_dagster.evaluation.judged import judged_scores
    from compalign_dagster.evaluation.report import Filtered, Judged, evaluate
    from compalign_dagster.reward.folder import load_model
    from compalign_dagster.reward.offline_encoders import remember_in
    from compalign_dagster.selection.version import Version

    remember_in(settings.features)
    store = storage.store
    data = training_data(storage, annotations, [])
    log.info("eval_report: scoring held-out judged images")
    with tempfile.TemporaryDirectory() as folder:
        network = load_model(_model_of(store, dataset).checkout(Path(folder, "model")), device=accelerator.pick())
        scores, undecodable = judged_scores(network, data)
        moved = not network.images_are_frozen
    version = Version.open(dataset)
    return evaluate(
        Filtered(version, crawl_shards(storage, version.shards["shard"].to_list())),
        Judged(data.images, data.captions, data.comparisons, scores, undecodable, moved),
        held_out,
        config,
        seed=settings.seed,
        progress=logged(KIND),
    )


def _model_of(store: artifacts.Store, dataset: Artifact) -> Artifact:
    """The reward model whose scores the dataset was made from."""
    from compalign_dagster.reward.promoted import promotions

    wanted = dataset.facts["model_version"]
    return next(model for model in promotions(store) if model.facts["model_version"] == wanted)


def _views(settings: Settings, dataset: Artifact, report: dict[str, Any]) -> dict[str, bytes]:
    from compalign_dagster.pages.evaluation import downstream_picture, eval_page

    page = eval_page(
        {
            **report,
            "sample": settings.profile == "sample",
            "data": _DATA.get(settings.profile, ""),
            "provenance": {
                "reward model": dataset.facts["model_version"],
                "filtered dataset": dataset.data_version,
                "policy": dataset.facts["policy"],
            },
        }
    )
    return {PAGE: page, PLOT: downstream_picture(report)}
