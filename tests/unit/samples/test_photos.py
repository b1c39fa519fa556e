import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compalign_dagster.errors import InputError
from compalign_dagster.samples.photos import write_photo_crawl

PHOTOS_PER_SHARD = 5


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(out, "JPEG")
    return out.getvalue()


def write_shard(path: Path, split: str, first: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + PHOTOS_PER_SHARD):
            name = f"{split}{number}_x"
            captions = [f"{split} {number} caption {place}" for place in range(5)]
            facts = {"image_id": f"{name}.jpg", "split": split, "width": 8, "height": 6, "captions": captions}
            for suffix, data in ((".jpg", jpeg(number)), (".json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def datapack(tmp_path_factory):
    """A data pack of 30 train photos in the real one's layout."""
    root = tmp_path_factory.mktemp("datapack")
    shards = root / "flickr8k/shards"
    for number in range(6):
        write_shard(shards / f"train-{number:05d}.tar", "train", number * PHOTOS_PER_SHARD)
    write_shard(shards / "dev-00000.tar", "dev", 100)
    write_shard(shards / "judged-00000.tar", "test", 200)
    pair = {
        "image_id": "test200_x.jpg",
        "caption_id": "test201_x.jpg#0",
        "caption": "x",
        "own_caption": False,
    }
    tables = {
        "expert": [pair | {"rating_1": 1, "rating_2": 2, "rating_3": 3}],
        "crowd": [pair | {"yes_fraction": 0.5, "n_yes": 2, "n_no": 2}],
        "composite": [{"image_id": "test200_x.jpg", "candidate": "human", "caption": "x", "rating": 3}],
    }
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), root / f"flickr8k/judgments_{name}.parquet")
    (root / "web_alt_text").mkdir()
    alt = [{"URL": f"http://web.test/{place}.jpg", "TEXT": f"alt text {place}"} for place in range(100)]
    alt.append({"URL": "http://web.test/none.jpg", "TEXT": " "})
    pq.write_table(pa.Table.from_pylist(alt), root / "web_alt_text/laion_10k_url_text.parquet")
    return root


@pytest.fixture(scope="module")
def crawl(datapack, tmp_path_factory):
    out = tmp_path_factory.mktemp("crawl")
    return write_photo_crawl(datapack, out, seed=7), out


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def truth(out: Path) -> list[dict]:
    return pq.read_table(out / "truth/captions.parquet").to_pylist()


def test_images_are_copied_byte_for_byte(datapack, crawl):
    _, out = crawl
    source = {}
    for path in sorted((datapack / "flickr8k/shards").glob("train-*.tar")):
        source |= {name: data for name, data in members(path).items() if name.endswith(".jpg")}
    copied = {name: data for name, data in members(out / "landing/photos/00000.tar").items() if name.endswith(".jpg")}
    assert copied == source


def test_seven_tenths_of_the_captions_are_spoiled_two_thirds_of_them_by_another_photo(crawl):
    summary, _ = crawl
    assert summary["captions_by_kind"] == {"own": 45, "other_image": 70, "alt_text": 35}


def test_truth_says_what_became_of_every_caption(crawl):
    _, out = crawl
    landed = members(out / "landing/photos/00000.tar")
    rows = truth(out)
    assert len(rows) == 150
    for row in rows:
        caption = json.loads(landed[row["key"] + ".json"])["captions"][row["caption_index"]]
        own = caption.startswith(row["key"].replace("_x", "").replace("train", "train ") + " ")
        if row["kind"] == "own":
            assert own
        elif row["kind"] == "other_image":
            assert caption.startswith("train ")
            assert not own
            assert row["origin"] != row["key"]
        else:
            assert caption.startswith("alt text ")
            assert row["origin"].startswith("http://web.test/")


def test_no_alt_text_is_used_twice_while_there_are_enough(crawl):
    _, out = crawl
    origins = [row["origin"] for row in truth(out) if row["kind"] == "alt_text"]
    assert len(set(origins)) == len(origins)


def test_judged_and_evaluation_shards_are_the_sources_bytes(datapack, crawl):
    _, out = crawl
    shards = datapack / "flickr8k/shards"
    assert (out / "labels/shards/judged/00000.tar").read_bytes() == (shards / "judged-00000.tar").read_bytes()
    assert (out / "evaluation/dev/00000.tar").read_bytes() == (shards / "dev-00000.tar").read_bytes()


def test_judgements_name_the_copied_shard(crawl):
    _, out = crawl
    line = json.loads((out / "labels/judgements.jsonl").read_text())
    assert line["image"]["shard"] == "judged/00000.tar"
    assert line["image"]["key"] + ".jpg" in members(out / "labels/shards/judged/00000.tar")
    assert {path.name for path in (out / "more_labels").iterdir()} == {"crowd.jsonl", "composite.jsonl"}


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_captions(datapack, crawl, tmp_path):
    _, out = crawl
    for seed, same in ((7, True), (8, False)):
        write_photo_crawl(datapack, tmp_path / str(seed), seed=seed)
        again = (tmp_path / str(seed) / "landing/photos/00000.tar").read_bytes()
        assert (again == (out / "landing/photos/00000.tar").read_bytes()) is same


@pytest.mark.parametrize(("spoiled", "own"), [(0.0, 150), (1.0, 0)])
def test_nothing_or_everything_may_be_spoiled(datapack, tmp_path, spoiled, own):
    summary = write_photo_crawl(datapack, tmp_path, spoiled=spoiled)
    assert summary["captions_by_kind"]["own"] == own


def test_fewer_photos_may_be_asked_for(datapack, tmp_path):
    summary = write_photo_crawl(datapack, tmp_path, images=4)
    assert (summary["images"], summary["captions"]) == (4, 20)
    assert len(members(tmp_path / "landing/photos/00000.tar")) == 8


def test_a_crawl_is_never_written_over(datapack, crawl):
    _, out = crawl
    with pytest.raises(InputError, match="landing/"):
        write_photo_crawl(datapack, out)


def test_an_incomplete_data_pack_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"train-00000\.tar and 11 more"):
        write_photo_crawl(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_altered_data_pack_is_refused(datapack, tmp_path):
    manifest = datapack / "MANIFEST.sha256"
    manifest.write_text("0" * 64 + "  ./flickr8k/shards/dev-00000.tar\n")
    try:
        with pytest.raises(InputError, match=r"dev-00000\.tar"):
            write_photo_crawl(datapack, tmp_path / "out")
    finally:
        manifest.unlink()


@pytest.mark.parametrize("spoiled", [-0.1, 1.5, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(datapack, tmp_path, spoiled):
    with pytest.raises(InputError, match="spoiled share"):
        write_photo_crawl(datapack, tmp_path / "out", spoiled=spoiled)
