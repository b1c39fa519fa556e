"""`caption_signals`: the language of each caption of a batch, where the optional model is installed.

Nothing starts it by itself and nothing waits for it. Without the model its columns are null and its
metadata says so.
"""

import tempfile
from collections import Counter
from pathlib import Path

import dagster as dg

from assets import keys
from assets.partitions import CRAWL_BATCHES
from assets.reporting import counts_table, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import IndexedShard, indexed_shards
from compalign_dagster.signals.captions import CODE_VERSION, SIGNALS, caption_signals
from compalign_dagster.signals.language import ABSENT, MODEL, model_version
from compalign_dagster.store import Store
from compalign_dagster.versions import work_key
from resources.storage import Storage

KIND = keys.CAPTION_SIGNALS.to_user_string()


@dg.asset(
    key=keys.CAPTION_SIGNALS,
    partitions_def=CRAWL_BATCHES,
    deps=[keys.RAW_CRAWL],
    group_name=keys.CRAWL_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet"},
    code_version=str(CODE_VERSION),
)
def caption_signals_of_batch(context: dg.AssetExecutionContext, storage: Storage) -> dg.MaterializeResult:
    """The language of every caption of a batch, by fastText's lid.176; null where the model is not installed.

    Signals are for looking and for policies of your own: nothing is dropped by them.
    """
    artifact, reused = publish_signals(storage.store, context.partition_key)
    facts = artifact.facts
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["pairs"],
        schema=SIGNALS,
        metadata={"language model": facts["language_model"], "captions": counts_table("language", facts["languages"])},
    )


def publish_signals(store: Store, batch: str) -> tuple[Artifact, bool]:
    """The signals of a batch's live shards, one file a shard, and whether they were there already."""
    latest.require(store, keys.RAW_CRAWL.to_user_string(), batch)
    shards = indexed_shards(store, batch)
    config = {"language_model": model_version()}
    key = work_key(
        KIND, code_version=CODE_VERSION, inputs=[[item.shard, item.index_version] for item in shards], config=config
    )

    def make() -> Artifact:
        languages: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for at, shard in enumerate(shards):
                path, counts = _write(store, shard, Path(folder, f"{at:05d}.parquet"))
                files[path.name] = path
                languages.update(counts)
            return artifacts.publish(
                store,
                KIND,
                key,
                files,
                code_version=CODE_VERSION,
                inputs=[latest.require(store, keys.RAW_CRAWL.to_user_string(), batch).as_input()],
                config=config,
                facts={
                    "pairs": languages.total(),
                    "shards": [item.shard for item in shards],
                    "languages": dict(sorted(languages.items())),
                    "language_model": MODEL if config["language_model"] else ABSENT,
                },
                partition=batch,
            )

    return latest.reuse_or_make(store, KIND, key, make, batch)


def _write(store: Store, shard: IndexedShard, path: Path) -> tuple[Path, Counter[str]]:
    table, counts = caption_signals(parquet.read(store.fetch(shard.pairs_key)))
    return parquet.write(table, path), counts
