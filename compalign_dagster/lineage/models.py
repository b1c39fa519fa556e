"""Which model gave a reward, what it was trained on, who judged that, and who promoted it.

What belongs here: reading the store's manifests and decisions about models. What does not: whether a model is good
(`reward/promotion.py`).
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from compalign_dagster import artifacts, latest
from compalign_dagster.artifacts import Artifact
from compalign_dagster.reward import promoted
from compalign_dagster.selection.version import frame_of
from compalign_dagster.store import Store

ANNOTATIONS = "coco_hf_annotations"
_SHOWN = ("images", "captions", "comparisons", "ties", "labelers")


def models(store: Store) -> list[Artifact]:
    """Every reward model that was ever the newest or was promoted, and still lies in the store; each once."""
    pointed = (artifacts.load(store, fact.value["manifest"]) for fact in promoted.history(store))
    found = [*latest.history(store, promoted.MODEL), *(item for item in pointed if item is not None)]
    return list({item.manifest_key: item for item in found}.values())


def annotations_of(model: Artifact) -> list[Artifact]:
    """The annotations that a model was trained on."""
    found = (artifacts.load(model.store, item.key) for item in model.inputs if item.kind == ANNOTATIONS)
    return [item for item in found if item is not None]


def crawl_of(model: Artifact) -> set[str]:
    """Store keys of the pair indexes whose images a model saw without judgements."""
    found = (artifacts.load(model.store, item.key) for item in model.inputs if item.kind == "raw_crawl")
    return {key for item in found if item is not None for key in frame_of(item, "shards.parquet")["pairs_key"]}


def trained_on(model: Artifact, images: Sequence[str], indexes: Sequence[str]) -> list[str]:
    """How a model was trained on any of these images (SHA-256), or on pairs of these indexes (store keys)."""
    ways = []
    for item in annotations_of(model):
        judged = frame_of(item, "images.parquet").filter(pl.col("image_id").is_in(list(images)))
        if judged.height:
            ways.append(f"{judged.height} of the images were judged")
    if set(indexes) & crawl_of(model):
        ways.append("pairs of the same shards were anchors, without judgements")
    return ways


def of_version(store: Store, model_version: str) -> dict[str, Any]:
    """What the store knows of the model with this version, as JSON values."""
    made = [fact for fact in promoted.history(store) if fact.value["model_version"] == model_version]
    found = next((item for item in models(store) if item.facts.get("model_version") == model_version), None)
    return {
        "model_version": model_version,
        "manifest": found.manifest_key if found else None,
        "created": found.manifest["created"] if found else None,
        "code_version": found.manifest["code_version"] if found else None,
        "backbone": found.manifest["config"].get("backbone") if found else None,
        "trained_on": [_input(store, item) for item in found.inputs] if found else [],
        "promotions": [
            {
                "decision": f"decisions/{promoted.DECISION}/{fact.version:08d}.json",
                "decided": fact.decided,
                "action": fact.value.get("action", "promote"),
                "by": fact.value.get("by", "not recorded"),
                "why": fact.value.get("why", "not recorded"),
            }
            for fact in made
        ],
    }


def judgements(store: Store, image: str) -> list[dict[str, Any]]:
    """Who judged an image (SHA-256), in any annotations that were ever the newest: labeler, guideline, ranking."""
    found = []
    for item in latest.history(store, ANNOTATIONS):
        ranks = frame_of(item, "ranks.parquet").filter(image_id=image)
        split = frame_of(item, "images.parquet").filter(image_id=image)["split"].to_list()
        for (labeler,), rows in ranks.partition_by("labeler", as_dict=True).items():
            found.append(
                {
                    "annotations": item.manifest_key,
                    "split": split[0] if split else None,
                    "labeler": labeler,
                    "guideline": rows["guideline"][0] or "not recorded",
                    "ranking": dict(rows.select("caption_id", "rank").iter_rows()),
                }
            )
    return found


def judges(annotations: Artifact) -> dict[str, Any]:
    """Judged images by labeler, and the guideline versions in use; counts."""
    ranks = frame_of(annotations, "ranks.parquet")
    by_labeler = ranks.group_by("labeler").agg(pl.col("image_id").n_unique()).sort("labeler")
    return {
        **{name: annotations.facts.get(name) for name in _SHOWN},
        "images_by_labeler": dict(by_labeler.iter_rows()),
        "guidelines": sorted({text or "not recorded" for text in ranks["guideline"].to_list()}),
        "exports": [{"file": item.key, "sha256": item.data_version} for item in annotations.inputs],
    }


def _input(store: Store, item: artifacts.Input) -> dict[str, Any]:
    made = artifacts.load(store, item.key) if item.kind == ANNOTATIONS else None
    about = {"kind": item.kind, "key": item.key, "data_version": item.data_version, "partition": item.partition}
    return {**about, **(judges(made) if made else {})}
