"""Vectors of images: one for each, whatever the batches, and none of what was purged or does not decode."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
import torch

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.errors import CompalignError
from compalign_dagster.scoring.embedding import distinct_images
from compalign_dagster.scoring.engine import Scorer, ScoringConfig
from tests.support.tiny_reward import crawl_shard
from tests.unit.scoring.test_engine import Counting


class Towers(Counting):
    """Two states of an image: its pixels, and those again twice as bright. Memory for `most` images."""

    def __init__(self, most=1_000):
        super().__init__()
        self.most = most

    def encode_images(self, batch):
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.encoded.append(len(batch))
        return torch.stack([batch.flatten(1), 2 * batch.flatten(1)], dim=1)


@pytest.fixture
def shard(tmp_path):
    return crawl_shard(tmp_path / "landing", 10)


@pytest.fixture
def pairs(shard):
    return index_shard(shard).pairs


def embedded(shard, pairs, model=None, **config):
    scorer = Scorer(model or Towers(), "m", ScoringConfig(device="cpu", **config))
    ((rows, vectors),) = scorer.embed_all([(shard, pairs)])
    return rows, vectors


def test_every_image_has_a_unit_vector_in_the_direction_of_the_mean_of_its_states(shard, pairs):
    rows, vectors = embedded(shard, pairs)
    assert rows == list(range(10))
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(10), abs=1e-6)
    colours = np.array([[220, 20, 20], [20, 200, 40]], np.float32)  # of the first two squares; blue rises by 1
    for vector, colour in zip(vectors, colours, strict=False):
        colour[2] += colour[1] == 200
        assert vector.reshape(4, 3)[0] == pytest.approx(colour / np.linalg.norm(colour) / 2, abs=1e-5)


def test_batches_and_memory_that_runs_out_change_no_vector(shard, pairs):
    _, whole = embedded(shard, pairs, batch_images=10)
    narrow = Towers(most=3)
    for model, images in ((Towers(), 1), (Towers(), 4), (narrow, 10)):
        assert np.array_equal(embedded(shard, pairs, model, batch_images=images)[1], whole)
    assert max(narrow.encoded) <= 3
    with pytest.raises(CompalignError, match="memory for one image"):
        embedded(shard, pairs, Towers(most=0))


def test_an_image_that_does_not_decode_is_left_out(shard, pairs):
    rows, vectors = embedded(shard, pairs, image_pixels=100)
    assert (rows, len(vectors)) == ([], 0)
    lengths = pairs["image_length"].to_pylist()
    cut = pairs.set_column(pairs.column_names.index("image_length"), "image_length", [[20, *lengths[1:]]])
    assert embedded(shard, cut)[0] == list(range(1, 10))


def test_several_shards_come_in_their_order(tmp_path, shard, pairs):
    other = crawl_shard(tmp_path / "landing", 4, "web/00001.tar")
    scorer = Scorer(Towers(), "m", ScoringConfig(device="cpu"))
    found = list(scorer.embed_all([(shard, pairs), (other, index_shard(other).pairs), (shard, pairs.slice(0, 0))]))
    assert [len(rows) for rows, _ in found] == [10, 4, 0]


def test_an_image_counts_once_and_one_that_was_purged_not_at_all():
    names = [hashlib.sha256(bytes([at])).hexdigest() for at in (1, 2, 1, 3, 3)]
    captions = ["one", "two", "one again", "", " "]
    table = pa.table({"image_sha256": names, "caption": captions, "at": range(5)})
    assert distinct_images(table)["at"].to_pylist() == [0, 1]
    assert distinct_images(table.slice(3)).num_rows == 0
