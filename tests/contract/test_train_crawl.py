"""What `compalign train` takes for unlabelled pairs, from shards that hold judged images and others."""

import pyarrow as pa
import pytest

from compalign_dagster.annotation.tables import IMAGES
from compalign_dagster.cli.train import unlabelled
from compalign_dagster.crawl.index import index_shard
from tests.support.tiny_reward import crawl_shard


@pytest.fixture
def shard(tmp_path):
    """24 images with a caption each."""
    return crawl_shard(tmp_path)


def judged(shard, count):
    """The first images of a shard as judged ones: every fourth is held out."""
    rows = [
        {
            "image_id": row["image_sha256"],
            "shard": row["shard"],
            "key": row["key"],
            "image_offset": row["image_offset"],
            "image_length": row["image_length"],
            "split": "train" if at % 4 else "test",
        }
        for at, row in enumerate(index_shard(shard).pairs.slice(0, count).to_pylist())
    ]
    return pa.Table.from_pylist(rows, IMAGES)


@pytest.mark.parametrize(
    ("count", "pairs"),
    [
        pytest.param(0, 24, id="nothing judged"),
        pytest.param(8, 16, id="a crawl beside judged images is the crawl alone"),
        pytest.param(20, 4 + 15, id="a few images beside judged ones come with those of the training split"),
        pytest.param(24, 18, id="judged images alone: those of the training split"),
    ],
)
def test_what_is_learned_from_without_labels_is_never_held_out(shard, count, pairs):
    images = judged(shard, count)
    found, refused = unlabelled([shard], images)
    assert found.num_rows == pairs
    assert not refused
    held_out = {row["image_id"] for row in images.to_pylist() if row["split"] != "train"}
    assert not held_out & set(found["image_sha256"].to_pylist())
