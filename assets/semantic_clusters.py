"""`semantic_clusters`: which images of the live crawl show the same kind of thing, as the promoted model sees them.

Nothing downstream waits for it and nothing starts it by itself: it embeds images of the whole crawl, and a batch that
arrives must not cost the crawl. Materialise it when a policy asks for it; vectors are published shard by shard and used
again, so that a crawl that grew by a batch embeds one batch.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa

from assets import keys, sheets
from assets.needs import SCORING
from assets.progress import Progress, logged
from assets.reporting import materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.clusters import ASSIGNMENT, CODE_VERSION, Clusters, Embedded, find_clusters
from compalign_dagster.crawl.live import indexed_shards
from compalign_dagster.parquet import column
from compalign_dagster.reward.promoted import promoted
from compalign_dagster.scoring.embedding import EmbedWork, embed_and_publish
from compalign_dagster.settings import Settings
from compalign_dagster.versions import work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

KIND = keys.SEMANTIC_CLUSTERS.to_user_string()
_SHOWN = 20
_LOOKED_AT = 4_096  # samples of each shown cluster, of which those of a few shards are shown
_PLACE = ["shard", "key", "image_offset", "image_length", "image_sha256"]

EMBEDDED = pa.schema(
    [
        column("shard", pa.string(), "shard name relative to the landing root"),
        column("index_version", pa.string(), "data version of the shard's index"),
        column("embeddings_key", pa.string(), "manifest key of its images' vectors"),
        column("data_version", pa.string(), "data version of those vectors"),
        column("images", pa.int64(), "how many there are"),
    ]
)


@dg.asset(
    key=keys.SEMANTIC_CLUSTERS,
    deps=[keys.SCORE_LEDGER, keys.PROMOTED_MODEL],
    group_name=keys.DATASET_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet", "pytorch"},
    code_version=str(CODE_VERSION),
    pool=SCORING.dagster_pool(),
    op_tags=SCORING.k8s_op_tags(),
)
def semantic_clusters(
    storage: Storage, accelerator: Accelerator, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult:
    """Samples of the live, scored crawl by semantic cluster: k-means over their images' vectors by the promoted model.

    Nothing is dropped by this; a policy's `most_per_semantic_cluster` does (docs/duplicates.md).
    """
    artifact, reused = publish_clusters(storage, accelerator, settings.semantic_clusters)
    facts = artifact.facts
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["images"],
        schema=ASSIGNMENT,
        metadata={
            **{name: facts[name] for name in ("images", "clusters", "without_cluster", "shards", "embedded")},
            "model_version": facts["model_version"],
            "largest cluster": facts["largest"][0]["images"] if facts["largest"] else 0,
            "share of images in the largest 1 % of clusters": facts["largest_percent"],
            "largest clusters": dg.MetadataValue.md(_table(facts["largest"][:_SHOWN])),
        },
    )


def publish_clusters(
    storage: Storage, accelerator: Accelerator, clusters: int | None = None, progress: Progress | None = None
) -> tuple[Artifact, bool]:
    """The clusters of the shards of the newest ledger by the promoted model, and whether they were there already."""
    store, model = storage.store, promoted(storage.store)
    ledger = latest.require(store, keys.SCORE_LEDGER.to_user_string())
    works = works_of(storage, ledger, model, accelerator.changes_bytes())
    config = {**accelerator.changes_bytes(), "clusters": clusters}
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[model.facts["model_version"], *([work.shard, work.index_version] for work in works)],
        config=config,
    )

    def make() -> Artifact:
        from compalign_dagster.scoring.engine import Scorer
        from compalign_dagster.scoring.work import Places, load_scorer

        def load() -> Scorer:
            places, config = Places(store, storage.landing), accelerator.scoring_config()
            scorer = load_scorer(places, model.manifest_key, config)
            assert isinstance(scorer, Scorer), "without a cascade there is one model"
            return scorer

        made = embed_and_publish(works, storage.landing, load, progress or logged(KIND))
        embedded = [_embedded(work) for work in works]
        with tempfile.TemporaryDirectory() as folder:
            found = find_clusters(
                [_files(storage, work, row) for work, row in zip(works, embedded, strict=True)],
                Path(folder),
                clusters=clusters,
            )
            parquet.write(parquet.from_rows(embedded, EMBEDDED), Path(folder, "embedded.parquet"))
            largest = _largest(found)
            return artifacts.publish(
                store,
                KIND,
                key,
                {path.name: path for path in sorted(Path(folder).glob("*.parquet"))},
                code_version=CODE_VERSION,
                inputs=[ledger.as_input(), model.as_input()],
                config=config,
                facts={
                    "images": int(found.sizes.sum()),
                    "without_cluster": found.without,
                    "clusters": len(found.sizes),
                    "shards": len(works),
                    "embedded": made,
                    "largest": largest,
                    "largest_percent": round(found.largest_percent, 6),
                    "model_version": model.facts["model_version"],
                },
                views=sheets.sheet(storage, _members(Path(folder, "assignment.parquet"), works, largest)),
            )

    return latest.reuse_or_make(store, KIND, key, make)


def works_of(storage: Storage, ledger: Artifact, model: Artifact, config: Mapping[str, Any]) -> list[EmbedWork]:
    """What is to be embedded of the shards of a ledger, by name."""
    rows = parquet.read(ledger.fetch("ledger.parquet"), ["shard", "pairs_key", "index_version"]).to_pylist()
    shards = {row["shard"]: row for row in reversed(rows)}  # of two models' rows, the promoted one's, which is first
    delivered = {(item.shard, item.index_version): item.delivery for item in indexed_shards(storage.store)}
    return [
        EmbedWork(
            name,
            row["pairs_key"],
            row["index_version"],
            model,
            config,
            delivered.get((name, row["index_version"])),
        )
        for name, row in sorted(shards.items())
    ]


def _embedded(work: EmbedWork) -> dict[str, Any]:
    found = work.published()
    assert found is not None, "what was just embedded is there"
    return {
        "shard": work.shard,
        "index_version": work.index_version,
        "embeddings_key": found.manifest_key,
        "data_version": found.data_version,
        "images": found.facts["images"],
    }


def _files(storage: Storage, work: EmbedWork, row: Mapping[str, Any]) -> Embedded:
    # Not by `fetch`, whose copies from a bucket stay: all of the crawl's would.
    def opened(key: str) -> io.BytesIO:
        return io.BytesIO(storage.store.read(key))

    vectors = artifacts.load(storage.store, row["embeddings_key"])
    assert vectors is not None, "its manifest was just read"
    return Embedded(
        partial(opened, work.pairs_key), partial(opened, vectors.file_key("embeddings.parquet")), row["images"]
    )


def _largest(found: Clusters) -> list[dict[str, int]]:
    order = sorted(range(len(found.sizes)), key=lambda at: (-found.sizes[at], at))
    return [{"cluster": at, "images": int(found.sizes[at])} for at in order[:_SHOWN] if found.sizes[at]]


def _members(
    assignment: Path, works: Sequence[EmbedWork], largest: Sequence[Mapping[str, int]]
) -> list[list[dict[str, Any]]]:
    """Some different images of each of the largest clusters; the indexes of a few shards are read for their places."""
    pairs_key = {work.shard: work.pairs_key for work in works}
    found = []
    for entry in largest[: sheets.SIDE]:
        samples = pl.scan_parquet(assignment).filter(cluster=entry["cluster"]).head(_LOOKED_AT).collect()
        wanted = samples.sample(min(samples.height, 2 * sheets.SIDE), shuffle=True, seed=entry["cluster"])
        images: dict[str, dict[str, Any]] = {}
        for (shard,), part in wanted.partition_by("shard", as_dict=True, maintain_order=True).items():
            if len(images) < sheets.SIDE:
                index = io.BytesIO(works[0].model.store.read(pairs_key[str(shard)]))
                places = pl.read_parquet(index, columns=_PLACE)
                for row in places.filter(pl.col("key").is_in(part["key"].to_list())).iter_rows(named=True):
                    images.setdefault(row["image_sha256"], row)
        found.append(list(images.values())[: sheets.SIDE])
    return found


def _table(clusters: Sequence[Mapping[str, int]]) -> str:
    lines = ["| cluster | samples |", "| ---: | ---: |"]
    lines += [f"| {row['cluster']} | {row['images']:,} |" for row in clusters]
    return "\n".join(lines) if clusters else "none"
