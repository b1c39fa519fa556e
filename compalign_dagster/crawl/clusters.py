"""Semantic clusters of a whole crawl's images: spherical k-means over their vectors, shard by shard.

Clusters are fitted on a sample of bounded size; every image is then assigned, one shard in memory at a time. What does
not belong here: making vectors (`scoring/embedding.py`), and what to do about clusters.

scikit-learn is optional (`pip install 'compalign-dagster[clusters]'`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compalign_dagster import parquet
from compalign_dagster.errors import CompalignError
from compalign_dagster.parquet import column

CODE_VERSION = 1
MOST_SAMPLED = 262_144  # images that clusters are fitted on, at most: 768 MiB of vectors of 768 numbers
MOST_CLUSTERS = 8_192  # unless a setting says otherwise: with more, fewer than 32 sampled images would make one
_SEED = 7
_EPOCHS = 20  # over the sample, always all of them: an early stop would depend on how sums are rounded
_BATCH = 4_096  # images of a step
_CELLS = 1 << 24  # similarities in memory at once: 64 MiB
_LITTLE_ENDIAN = np.dtype("<f2")

EMBEDDINGS = pa.schema(
    [
        column("image_sha256", pa.string(), "SHA-256 of the image's bytes, hex"),
        column(
            "embedding", pa.binary(), "its unit vector, float16, little-endian; none after a takedown", nullable=True
        ),
    ]
)

ASSIGNMENT = pa.schema(
    [
        column("shard", pa.string(), "shard name relative to the landing root"),
        column("key", pa.string(), "sample key"),
        column("cluster", pa.int32(), "semantic cluster of the sample's image"),
    ]
)

CLUSTERS = pa.schema(
    [
        column("cluster", pa.int32(), "number of the cluster"),
        column("images", pa.int64(), "samples whose image it has"),
        column(
            "image_sha256",
            pa.string(),
            "the image nearest to its centre; none of a cluster without images",
            nullable=True,
        ),
        column(
            "embedding", pa.binary(), "the centre, as the vectors of images; it goes with that image", nullable=True
        ),
    ]
)


@dataclass(frozen=True)
class Embedded:
    """One shard: how to open its pair index and its vectors, and how many those are."""

    pairs: Callable[[], BinaryIO | Path]
    vectors: Callable[[], BinaryIO | Path]
    images: int


@dataclass(frozen=True)
class Clusters:
    """What was found. `sizes` has the samples of each cluster, int64 [clusters]."""

    sizes: np.ndarray
    without: int  # samples whose image has no vector

    @property
    def largest_percent(self) -> float:
        """Share of the samples that the largest hundredth of the clusters has, 0 to 1."""
        largest = np.sort(self.sizes)[::-1][: math.ceil(len(self.sizes) / 100)]
        return float(largest.sum() / self.sizes.sum()) if self.sizes.sum() else 0.0


def table_of(images: Sequence[str], vectors: np.ndarray) -> pa.Table:
    """EMBEDDINGS of these images and their vectors, float [N, D], sorted; vectors that are not finite are left out."""
    order = [at for at in np.argsort(np.array(images, str), kind="stable") if np.isfinite(vectors[at]).all()]
    rows = [{"image_sha256": images[at], "embedding": _packed(vectors[at])} for at in order]
    return parquet.from_rows(rows, EMBEDDINGS)


def find_clusters(shards: Sequence[Embedded], folder: Path, *, clusters: int | None = None) -> Clusters:
    """Write `assignment.parquet` (ASSIGNMENT, in the order of `shards`, by key) and `clusters.parquet` (CLUSTERS).

    `clusters` are as many as asked for, else the square root of the images' number, MOST_CLUSTERS at most; never more
    than images. Samples whose image has no vector are in no cluster.
    """
    sampled = _sample(shards)
    wanted = clusters or min(math.ceil(math.sqrt(sum(shard.images for shard in shards))), MOST_CLUSTERS)
    centres = fit(sampled, min(wanted, len(sampled)))
    sizes, nearest = np.zeros(len(centres), np.int64), _Nearest(len(centres))
    without = 0
    with pq.ParquetWriter(folder / "assignment.parquet", ASSIGNMENT, compression="zstd") as writer:
        for shard in shards:
            images, vectors = _read(shard)
            labels, similarity = assign(vectors, centres)
            nearest.look(images, labels, similarity)
            table, missing = _assignment(shard, dict(zip(images, labels.tolist(), strict=True)))
            sizes += np.bincount(table["cluster"].to_numpy(), minlength=len(centres))
            without += missing
            writer.write_table(table)
    named = zip(sizes.tolist(), nearest.images, centres, strict=True)
    rows = [
        {"cluster": at, "images": size, "image_sha256": image, "embedding": _packed(centre) if image else None}
        for at, (size, image, centre) in enumerate(named)
    ]
    parquet.write(parquet.from_rows(rows, CLUSTERS), folder / "clusters.parquet")
    return Clusters(sizes, without)


def fit(sampled: np.ndarray, clusters: int) -> np.ndarray:
    """The centres of so many clusters of unit vectors, unit vectors too, float32 [clusters, D]; seeded."""
    if not clusters:
        return np.empty((0, sampled.shape[1]), np.float32)
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise CompalignError(
            "semantic clusters",
            expected="scikit-learn",
            found=str(error),
            remedy="pip install 'compalign-dagster[clusters]'",
        ) from error
    means = MiniBatchKMeans(
        clusters,
        batch_size=min(_BATCH, len(sampled)),
        max_iter=_EPOCHS,
        max_no_improvement=None,
        n_init=1,
        compute_labels=False,
        random_state=_SEED,
    )
    return _unit(means.fit(sampled).cluster_centers_.astype(np.float32))


def assign(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit vector [N, D] the nearest centre, int64 [N], the first of equals, and their cosine, float32 [N]."""
    labels, similarity = np.zeros(len(vectors), np.int64), np.zeros(len(vectors), np.float32)
    rows = max(1, _CELLS // max(1, len(centres)))
    for start in range(0, len(vectors), rows):
        part = slice(start, start + rows)
        cosine = vectors[part] @ centres.T
        labels[part] = cosine.argmax(axis=1)
        similarity[part] = cosine.max(axis=1)
    return labels, similarity


class _Nearest:
    """The image nearest to each centre, the first by name of equals."""

    def __init__(self, clusters: int) -> None:
        self.images: list[str | None] = [None] * clusters
        self._cosine = np.full(clusters, -np.inf, np.float32)

    def look(self, images: Sequence[str], labels: np.ndarray, similarity: np.ndarray) -> None:
        order = np.lexsort((-similarity, labels))
        for at in order[np.unique(labels[order], return_index=True)[1]]:
            cluster, cosine = labels[at], similarity[at]
            before = self.images[cluster]
            if cosine > self._cosine[cluster] or (cosine == self._cosine[cluster] and images[at] < (before or "")):
                self.images[cluster], self._cosine[cluster] = images[at], cosine


def _sample(shards: Sequence[Embedded]) -> np.ndarray:
    """Vectors of MOST_SAMPLED images at most, each once, float32 [N, D], in the order of their names.

    An image is drawn by its SHA-256, which is as good as chance: whatever shards it lies in, it is drawn or not.
    """
    known = sum(shard.images for shard in shards)
    below = f"{(MOST_SAMPLED << 64) // known:016x}" if known > MOST_SAMPLED else None
    drawn: dict[str, bytes] = {}
    for shard in shards:
        drawn |= _stored(shard, below)
    return _vectors([drawn[image] for image in sorted(drawn)[:MOST_SAMPLED]])


def _read(shard: Embedded) -> tuple[list[str], np.ndarray]:
    """A shard's images and their unit vectors, float32 [N, D]."""
    stored = _stored(shard)
    return list(stored), _vectors(list(stored.values()))


def _stored(shard: Embedded, below: str | None = None) -> dict[str, bytes]:
    """The vectors of a shard's images as they are stored, by image; of those alone whose name lies below another."""
    table = parquet.read(shard.vectors())
    table = table.filter(table["embedding"].is_valid())
    if below:
        table = table.filter(pc.less(table["image_sha256"], pa.scalar(below)))
    images: Any = table["image_sha256"].to_pylist()
    vectors: Any = table["embedding"].to_pylist()
    return dict(zip(images, vectors, strict=True))


def _vectors(packed: Sequence[bytes]) -> np.ndarray:
    """Unit vectors, float32 [N, D]."""
    found = np.empty((len(packed), len(packed[0]) // _LITTLE_ENDIAN.itemsize if packed else 0), np.float32)
    for at, vector in enumerate(packed):
        found[at] = np.frombuffer(vector, _LITTLE_ENDIAN)
    return _unit(found)


def _assignment(shard: Embedded, cluster_of: dict[str, int]) -> tuple[pa.Table, int]:
    """ASSIGNMENT of the shard's samples, by key, and how many have an image without a vector."""
    pairs = parquet.read(shard.pairs(), ["shard", "key", "image_sha256"])
    samples = sorted(set(zip(*(pairs[name].to_pylist() for name in ("shard", "key", "image_sha256")), strict=True)))
    rows = [
        {"shard": name, "key": key, "cluster": cluster_of[image]}
        for name, key, image in samples
        if image in cluster_of
    ]  # fmt: skip
    return parquet.from_rows(rows, ASSIGNMENT), len(samples) - len(rows)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))  # `np.linalg.norm` would make a copy of them all
    vectors /= np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
    return vectors


def _packed(vector: np.ndarray) -> bytes:
    return vector.astype(_LITTLE_ENDIAN).tobytes()
