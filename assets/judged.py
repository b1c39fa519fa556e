"""The published annotations as what training and evaluation read: tables, and where the images lie."""

from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import IndexedShard, pairs_of
from compalign_dagster.crawl.shards import Shard, is_shard
from compalign_dagster.reward.data import TrainingData
from resources.storage import Storage

SHARD_FOLDER = "shards/"
_TABLES = ("images", "captions", "ranks", "comparisons")


def label_shards(storage: Storage) -> list[Shard]:
    """The shards of judged images, named relative to the folder that holds them."""
    store = storage.labels
    return [
        Shard(entry.key.removeprefix(SHARD_FOLDER), store, entry.key)
        for entry in store.list(SHARD_FOLDER)
        if is_shard(entry.key)
    ]


def crawl_shards(storage: Storage, names: list[str]) -> dict[str, Shard]:
    """Crawl shards by name."""
    return {name: Shard(name, storage.landing, name) for name in names}


def training_data(storage: Storage, annotations: Artifact, crawl: list[IndexedShard]) -> TrainingData:
    """Judgements, and the pairs of some indexed crawl shards without labels."""
    tables = {name: parquet.read(annotations.fetch(f"{name}.parquet")) for name in _TABLES}
    shards = {shard.name: shard for shard in label_shards(storage)}
    shards |= crawl_shards(storage, [shard.shard for shard in crawl])
    return TrainingData(**tables, crawl=pairs_of(storage.store, crawl), shards=shards)
