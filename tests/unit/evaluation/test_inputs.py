import io
import tarfile

import numpy as np
import polars as pl
import pytest
from PIL import Image

from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import InputError
from compalign_dagster.evaluation.inputs import (
    Encoders,
    held_out_pairs,
    index_evaluation,
    pixel_encoders,
    training_pairs,
)
from compalign_dagster.store import LocalStore


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def shard(tmp_path):
    """Samples 0 to 2 with one caption each; 0 and 2 are the same picture."""
    with tarfile.open(tmp_path / "clean.tar", "w") as tar:
        for at, colour in enumerate(("red", "blue", "red")):
            for name, data in ((f"{at}.png", png(colour)), (f"{at}.txt", f"caption {at}".encode())):
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return Shard("clean.tar", LocalStore(tmp_path), "clean.tar")


def test_held_out_images_are_one_by_content(shard):
    pairs, refused = index_evaluation([shard])
    test, undecodable = held_out_pairs(pairs, [shard], pixel_encoders(8))
    assert (refused, undecodable) == (0, 0)
    assert test.images.shape == (2, 8, 8, 3)
    assert test.images.dtype == np.uint8
    assert test.image_of.tolist() == [0, 1, 0]
    assert list(test.captions) == ["caption 0", "caption 1", "caption 2"]
    assert test.images[1, 0, 0].tolist() == [0, 0, 255]


def test_only_drawn_images_are_read_and_each_once(shard):
    table = pl.from_arrow(index_evaluation([shard])[0])
    twice = pl.concat([table, table[:1].with_columns(caption=pl.lit("another"))])
    read = []

    def encode(images):
        read.extend(images)
        return pixel_encoders(8).images(images)

    pairs = training_pairs(twice, np.array([0, 2, 3]), {"clean.tar": shard}, Encoders(encode))
    assert len(read) == len(pairs.images) == 2
    assert pairs.image_of.tolist() == [0, -1, 1, 0]


def test_features_of_a_caption_are_computed_once_and_lie_at_its_rows(shard):
    table = pl.from_arrow(index_evaluation([shard])[0]).with_columns(caption=pl.Series(["x", "never", "x"]))
    asked = []

    def encode(captions):
        asked.extend(captions)
        return np.full((len(captions), 4), 5, np.float32)

    pairs = training_pairs(table, np.array([0, 2]), {"clean.tar": shard}, Encoders(pixel_encoders(8).images, encode))
    assert asked == ["x"]
    assert pairs.texts[:, 0].tolist() == [5, 0, 5]


def test_an_image_that_changed_since_it_was_scored_is_named(shard):
    table = pl.from_arrow(index_evaluation([shard])[0])
    path = shard.store.path(shard.key)
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(InputError, match=r"clean\.tar"):
        training_pairs(table, np.array([0]), {"clean.tar": shard}, pixel_encoders(8))
    with pytest.raises(InputError, match="no such shard"):
        training_pairs(table, np.array([0]), {}, pixel_encoders(8))
