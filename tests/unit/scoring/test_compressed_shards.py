"""A compressed shard is scored, read for training and resharded as its plain tar is, in one pass forwards."""

import gzip

import pyarrow as pa
import pytest

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.parquet import from_rows
from compalign_dagster.reward.loading import ImageLoader
from compalign_dagster.scoring.engine import ScoringConfig, score_shard
from compalign_dagster.selection.resharding import reshard
from compalign_dagster.selection.tables import KEPT
from compalign_dagster.store import LocalStore
from tests.support.tiny_reward import crawl_shard
from tests.unit.scoring.test_engine import Counting


class CountingStore(LocalStore):
    """A folder that counts how often a shard is opened."""

    opened = 0

    def open(self, key, *, stamp=None):
        self.opened += 1
        return super().open(key, stamp=stamp)


@pytest.fixture
def shards(tmp_path):
    """The same samples as a plain and as a compressed shard."""
    plain = crawl_shard(tmp_path, count=12)
    packed = tmp_path / "web/00000.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / plain.key).read_bytes()))
    return plain, Shard("web/00000.tar.gz", CountingStore(tmp_path), "web/00000.tar.gz")


def test_scores_are_those_of_the_plain_tar_and_the_stream_is_passed_once(shards):
    plain, packed = shards
    pairs = index_shard(packed).pairs
    packed.store.opened = 0
    found = score_shard(Counting(), "v", packed, pairs, ScoringConfig(batch_images=3))
    assert packed.store.opened == 1
    expected = score_shard(Counting(), "v", plain, index_shard(plain).pairs, ScoringConfig(batch_images=3))
    assert found.scores["reward"] == expected.scores["reward"]
    assert found.scores["pair_id"] == expected.scores["pair_id"]
    backwards = pairs.take(list(range(len(pairs)))[::-1])
    packed.store.opened = 0
    score_shard(Counting(), "v", packed, backwards, ScoringConfig(batch_images=3))
    assert packed.store.opened == len(pairs), "the planted disorder: each step back opens it again"


def test_training_reads_it_forwards_whatever_order_is_asked_for(shards):
    _, packed = shards
    rows = index_shard(packed).pairs.to_pylist()
    places = [(packed.name, row["image_offset"], row["image_length"]) for row in rows][::-1]
    loader = ImageLoader({packed.name: packed}, Counting().prepare, cache_bytes=0)
    packed.store.opened = 0
    assert loader.usable(places) == set(places)
    assert len(loader.batch(places)) == len(places)
    assert packed.store.opened == 2


def test_kept_pairs_of_it_are_resharded_to_the_same_bytes(shards, tmp_path):
    made = []
    for shard in shards:
        rows = [{**row, "reward": 1.0, "shard": "web/00000.tar"} for row in index_shard(shard).pairs.to_pylist()]
        kept = from_rows([{name: row[name] for name in KEPT.names} for row in rows], KEPT)
        assert isinstance(kept, pa.Table)
        [path] = reshard(kept, {"web/00000.tar": shard}, tmp_path / shard.name.replace("/", "-"))
        made.append(path.read_bytes())
    assert made[0] == made[1]
