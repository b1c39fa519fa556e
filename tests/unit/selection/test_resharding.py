import hashlib
import io
import json
import tarfile

import polars as pl
import pytest
from PIL import Image

from compalign_dagster import parquet
from compalign_dagster.crawl.index import make_pair_id
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import InputError
from compalign_dagster.selection.pairs import PairChangedError
from compalign_dagster.selection.resharding import reshard
from compalign_dagster.selection.tables import KEPT
from compalign_dagster.store import LocalStore


def pair_id(image, caption):
    return make_pair_id(hashlib.sha256(image).digest(), caption.encode())


@pytest.fixture
def crawl(tmp_path):
    """A tar of three images, and two kept pairs of the first, one of the last."""
    images = []
    for at, kind in enumerate(("JPEG", "PNG", "WEBP")):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (at * 80, 0, 0)).save(out, kind)
        images.append(out.getvalue())
    path = tmp_path / "landing/sample/00000.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for at, data in enumerate(images):
            header = tarfile.TarInfo(f"{at:03d}.image")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    with tarfile.open(path) as tar:
        offsets = [member.offset_data for member in tar]
    rows = [
        {"pair_id": pair_id(images[at], f"caption {at} {index} <é>"), "shard": "sample/00000.tar", "key": f"{at:03d}",
         "caption_index": index, "caption": f"caption {at} {index} <é>", "image_offset": offsets[at],
         "image_length": len(images[at]), "corpus": "sample", "reward": 1.5}
        for at, index in ((0, 0), (0, 3), (2, 0))
    ]  # fmt: skip
    store = LocalStore(tmp_path / "landing")
    shards = {"sample/00000.tar": Shard("sample/00000.tar", store, "sample/00000.tar")}
    return parquet.from_rows(rows, KEPT), shards, images


def test_images_are_the_source_bytes_and_captions_stay_with_them(crawl, tmp_path):
    kept, shards, images = crawl
    (path,) = reshard(kept, shards, tmp_path / "out")
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    assert list(members) == ["000000000.jpg", "000000000.json", "000000001.webp", "000000001.json"]
    assert members["000000000.jpg"] == images[0]
    assert members["000000001.webp"] == images[2]
    facts = json.loads(members["000000000.json"])
    assert facts["captions"] == ["caption 0 0 <é>", "caption 0 3 <é>"]
    assert facts["pair_ids"] == [pair_id(images[0], caption) for caption in facts["captions"]]
    assert facts["source"] == {"shard": "sample/00000.tar", "key": "000"}


def test_the_tars_depend_on_the_kept_rows_alone(crawl, tmp_path):
    kept, shards, _ = crawl
    one = reshard(kept, shards, tmp_path / "one", per_shard=1)
    other = reshard(kept, shards, tmp_path / "other", per_shard=1)
    assert [path.name for path in one] == ["00000.tar", "00001.tar"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_a_shard_that_changed_or_is_missing_is_named(crawl, tmp_path):
    kept, shards, _ = crawl
    with pytest.raises(InputError, match=r"sample/00000\.tar"):
        reshard(kept, {}, tmp_path / "out")
    path = tmp_path / "landing/sample/00000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match=r"sample/00000\.tar"):
        reshard(kept, shards, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_may_come_in_pieces_that_part_an_image_and_only_one_is_asked_for_at_a_time(crawl, tmp_path, size):
    kept, shards, _ = crawl
    (whole,) = reshard(kept, shards, tmp_path / "whole")
    frame, out = pl.DataFrame(pl.from_arrow(kept)), tmp_path / "pieces"
    asked = []

    def pieces():
        for start in range(0, frame.height, size):
            asked.append(start)
            yield frame[start : start + size]

    (made,) = reshard(pieces(), shards, out)
    assert made.read_bytes() == whole.read_bytes()
    assert asked == list(range(0, frame.height, size))


def test_an_image_that_was_written_over_in_place_is_named_not_resharded(crawl, tmp_path):
    kept, shards, _ = crawl
    path = tmp_path / "landing/sample/00000.tar"
    data = bytearray(path.read_bytes())
    data[kept["image_offset"][0].as_py() + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(PairChangedError, match=kept["pair_id"][0].as_py()):
        reshard(kept, shards, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))
