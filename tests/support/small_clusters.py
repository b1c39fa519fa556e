"""Semantic clusters of a small store (`small_version.py`), of made-up vectors: no model is there to make true ones.

Vectors lie around `KINDS` directions; which one an image has follows from its bytes.
"""

import numpy as np

from assets import keys
from assets.semantic_clusters import publish_clusters, works_of
from compalign_dagster import latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.clusters import table_of
from compalign_dagster.reward.promoted import promoted
from compalign_dagster.scoring.embedding import EmbedWork, distinct_images, publish
from resources.accelerator import Accelerator
from tests.support.small_version import SmallStore

KINDS, WIDTH = 5, 16


def small_clusters(small: SmallStore, clusters: int | None = KINDS) -> Artifact:
    """Publish vectors of the newest ledger's shards that have none yet, then their clusters."""
    storage, accelerator = small.storage, Accelerator.from_settings(small.settings)
    ledger = latest.require(small.store, keys.SCORE_LEDGER.to_user_string())
    for work in works_of(storage, ledger, promoted(small.store), accelerator.changes_bytes()):
        if work.published() is None:
            embed(work)
    artifact, _ = publish_clusters(storage, accelerator, clusters)
    return artifact


def embed(work: EmbedWork) -> Artifact:
    """Publish made-up vectors of a shard."""
    names = distinct_images(parquet.read(work.model.store.fetch(work.pairs_key)))["image_sha256"].to_pylist()
    return publish(work, table_of(names, np.stack([vector_of(name) for name in names])), len(names), {"device": "-"})


def kind_of(image: str) -> int:
    """Which of the directions an image's vector is near to."""
    return int(image[:8], 16) % KINDS


def vector_of(image: str) -> np.ndarray:
    """A unit vector near to the image's direction, float32 [WIDTH]."""
    found = np.random.default_rng(int(image[:8], 16)).normal(scale=0.05, size=WIDTH)
    found[kind_of(image)] += 1
    return (found / np.linalg.norm(found)).astype(np.float32)
