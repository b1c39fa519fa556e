"""`coco_hf_annotations`: human judgements in the contract's schema, validated, split by image."""

import tempfile
from pathlib import Path
from typing import Any

import dagster as dg

from assets import keys
from assets.judged import label_shards
from assets.reporting import PAGE, claim, counts_table, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.annotation import tables
from compalign_dagster.annotation.assemble import CODE_VERSION, Annotations, assemble, problems_in
from compalign_dagster.annotation.read import named, read_exports
from compalign_dagster.annotation.summary import summarize
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.crawl.index import CODE_VERSION as INDEX
from compalign_dagster.crawl.shards import read_member
from compalign_dagster.errors import InputError
from compalign_dagster.settings import Settings
from compalign_dagster.store import Listed
from compalign_dagster.versions import digest_file, work_key
from resources.storage import Storage

KIND = keys.COCO_HF_ANNOTATIONS.to_user_string()
_EXAMPLES_SHOWN = 12


@dg.asset(
    key=keys.COCO_HF_ANNOTATIONS,
    deps=[keys.LABEL_EXPORTS],
    group_name=keys.REFEREE_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet"},
    code_version=str(CODE_VERSION),
    check_specs=[
        dg.AssetCheckSpec(
            "every_line_is_used_or_rejected_and_no_image_is_in_two_splits",
            asset=keys.COCO_HF_ANNOTATIONS,
            blocking=True,
            description="Lines read = used + rejected with a reason; splits are by image. All rows.",
        )
    ],
)
def coco_hf_annotations(storage: Storage, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult:
    """What people preferred: captions of one image ranked, with ties, and rated on four criteria.

    Accuracy, completeness, vividness and context, 1 to 5. Images are split 80/10/10 into train,
    validation and test by a hash of their bytes, so that no image is ever in two splits.
    """
    artifact, reused = publish_annotations(storage, settings)
    facts = artifact.facts
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["comparisons"],
        schema=tables.COMPARISONS,
        metadata={
            **{name: facts[name] for name in ("images", "captions", "comparisons", "ties", "labelers")},
            "images by split": counts_table("split", facts["images_by_split"]),
            "rejected by reason": counts_table("reason", facts["rejected_by_reason"]),
        },
        checks=[claim("every_line_is_used_or_rejected_and_no_image_is_in_two_splits", facts["problems"])],
    )


def publish_annotations(storage: Storage, settings: Settings) -> tuple[Artifact, bool]:
    """The published annotations of the label exports as they lie now."""
    sources = [entry for entry in storage.labels.list() if entry.key.endswith((".jsonl", ".parquet", ".tar"))]
    exports = [entry for entry in sources if not entry.key.endswith(".tar")]
    if not exports:
        raise InputError(
            f"label exports in {storage.labels_url}",
            expected="at least one .jsonl or .parquet file of judgements",
            found="none",
            remedy="Export your labels there, or run `compalign sample-crawl` for sample data.",
        )
    inputs = [_as_input(storage, entry) for entry in sources]
    config = {"seed": settings.seed, "index": INDEX}
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[[item.key, item.data_version] for item in inputs],
        config=config,
    )

    def make() -> Artifact:
        labels = storage.labels
        read = read_exports(named((labels, entry.key) for entry in exports))
        annotations = assemble(*read, label_shards(storage), seed=settings.seed)
        return _publish(storage, key, inputs, config, annotations)

    return latest.reuse_or_make(storage.store, KIND, key, make)


def _as_input(storage: Storage, entry: Listed) -> Input:
    version = digest_file(storage.labels.fetch(entry.key))
    return Input("label_export", entry.key, version)


def _publish(
    storage: Storage, key: str, inputs: list[Input], config: dict[str, Any], annotations: Annotations
) -> Artifact:
    from compalign_dagster.pages.annotations import annotations_page

    facts = {**summarize(annotations), "problems": problems_in(annotations)}
    parts = ("images", "captions", "ranks", "comparisons", "rejected")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            f"{part}.parquet": parquet.write(getattr(annotations, part), Path(folder, f"{part}.parquet"))
            for part in parts
        }
        return artifacts.publish(
            storage.store,
            KIND,
            key,
            files,
            code_version=CODE_VERSION,
            inputs=inputs,
            config=config,
            facts=facts,
            views={PAGE: annotations_page(facts, _examples(storage, annotations))},
        )


def _examples(storage: Storage, annotations: Annotations) -> list[dict[str, Any]]:
    """A few judged images with their captions, best first, as the first labeler ranked them."""
    shards = {shard.name: shard for shard in label_shards(storage)}
    texts = {(row["image_id"], row["caption_id"]): row for row in annotations.captions.to_pylist()}
    ranks: dict[str, list[dict]] = {}
    for row in annotations.ranks.to_pylist():
        ranks.setdefault(row["image_id"], []).append(row)
    examples = []
    for image in sorted(annotations.images.to_pylist(), key=lambda row: row["image_id"])[:_EXAMPLES_SHOWN]:
        rows = ranks.get(image["image_id"], [])
        labeler = min((row["labeler"] for row in rows), default=None)
        ordered = sorted(
            (row for row in rows if row["labeler"] == labeler and row["rank"] is not None),
            key=lambda row: row["rank"],
        )
        examples.append(
            {
                "image": read_member(shards[image["shard"]], image["image_offset"], image["image_length"]),
                "labeler": labeler,
                "captions": [
                    {
                        "rank": row["rank"],
                        "caption": texts[row["image_id"], row["caption_id"]]["caption"],
                        "source": texts[row["image_id"], row["caption_id"]]["caption_source"],
                    }
                    for row in ordered
                ],
            }
        )
    return examples
