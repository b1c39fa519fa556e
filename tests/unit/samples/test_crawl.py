import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from compalign_dagster.annotation.assemble import assemble
from compalign_dagster.annotation.read import read_annotations
from compalign_dagster.crawl.index import concat, index_shard
from compalign_dagster.crawl.shards import find_shards
from compalign_dagster.errors import InputError
from compalign_dagster.samples import crawl
from compalign_dagster.samples.crawl import MARKER, write_sample_crawl
from compalign_dagster.samples.hostile import HOSTILE
from compalign_dagster.versions import digest_file, digest_json

SIZES = {"pairs": 230, "judged_images": 40, "evaluation_pairs": 25, "shard_pairs": 50}

PARTS = ("landing", "labels", "evaluation")


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "out"
    write_sample_crawl(out, seed=3, **SIZES)
    return out


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in folder.rglob("*") if path.is_file()}


def truth(sample: Path, part: str) -> list[dict]:
    return [row for row in pq.read_table(sample / "truth/captions.parquet").to_pylist() if row["part"] == part]


def test_equal_arguments_give_equal_bytes_and_another_seed_gives_others(sample, tmp_path):
    write_sample_crawl(tmp_path / "again", seed=3, **SIZES)
    write_sample_crawl(tmp_path / "other", seed=4, **SIZES)
    assert files(tmp_path / "again") == files(sample)
    other = files(tmp_path / "other")
    assert other.keys() == files(sample).keys()
    assert not set(other.values()) & set(files(sample).values())


def test_what_is_written_changes_only_with_the_code_version(sample):
    said = [
        [row[name] for name in ("part", "shard", "key", "kind", "caption")]
        for part in PARTS
        for row in truth(sample, part)
    ]
    lines, _ = read_annotations([str(sample / "labels")])
    judged = [[item.model_dump() for item in line.judged.judgements] for line in lines]
    digest = digest_json([crawl.CODE_VERSION, said, judged])
    assert digest == "4629995097f7d1b68356b8402baee07f3f2383cc027b93cdee7feaba62b09bb8", (
        "bump CODE_VERSION in crawl.py, then this digest"
    )


def test_the_crawl_has_exactly_the_pairs_asked_for_and_everything_else_is_quarantined(sample):
    index = concat(index_shard(shard) for shard in find_shards([str(sample / "landing")]))
    assert index.pairs.num_rows == SIZES["pairs"]
    assert set(index.shards["status"].to_pylist()) == {"ok"}
    spoiled = [row for row in truth(sample, "landing") if row["kind"] in (*HOSTILE, "empty")]
    assert {row["key"] for row in spoiled} == set(index.quarantine["key"].to_pylist())
    assert {
        "image_truncated",
        "image_undecodable",
        "caption_missing",
        "caption_not_utf8",
        "caption_too_long",
    } <= set(index.quarantine["reason"].to_pylist())


def test_truth_describes_every_pair_where_it_lies(sample):
    known = {(row["shard"], row["key"], row["caption_index"]): row["caption"] for row in truth(sample, "landing")}
    index = concat(index_shard(shard) for shard in find_shards([str(sample / "landing")]))
    for row in index.pairs.to_pylist():
        assert known[row["shard"], row["key"], row["caption_index"]] == row["caption"]
        assert row["url"].startswith("https://")
        assert row["url"].split("/")[2].endswith(".example.invalid")


def test_there_are_two_corpora_and_names_do_not_collide(sample):
    names = [shard.name for shard in find_shards([str(sample / "landing")])]
    assert names == ["sample-shop/00000.tar", *(f"sample/0000{n}.tar" for n in range(4))]
    judged = [shard.name for shard in find_shards([str(sample / "labels/shards")])]
    assert judged == ["judged/00000.tar"]


def test_members_are_laid_out_as_img2dataset_does(sample):
    with tarfile.open(sample / "landing/sample/00001.tar") as tar:
        names = tar.getnames()
        facts = json.load(tar.extractfile(names[2]))
        image = tar.extractfile(names[0]).read()
    key = names[0].removesuffix(".jpg")
    assert names[:3] == [f"{key}.jpg", f"{key}.txt", f"{key}.json"]
    assert facts["key"] == key
    assert facts["status"] == "success"
    assert Image.open(io.BytesIO(image)).size == (facts["width"], facts["height"])


def test_the_judgements_are_read_without_a_single_rejection(sample):
    lines, rejected = read_annotations([str(sample / "labels")])
    annotations = assemble(lines, rejected, find_shards([str(sample / "labels/shards")]), seed=1)
    assert annotations.rejected.num_rows == 0
    assert annotations.images.num_rows == SIZES["judged_images"]
    assert annotations.captions.num_rows == 5 * SIZES["judged_images"]
    labelers = Counter(len(line.judged.judgements) for line in lines)
    assert labelers == {1: 36, 3: 4}
    assert annotations.comparisons.num_rows == 10 * (36 + 3 * 4)


def test_the_place_of_a_judged_caption_says_nothing_about_its_source(sample):
    lines, _ = read_annotations([str(sample / "labels")])
    places = {
        place for line in lines for place, caption in enumerate(line.judged.captions) if caption.source == "human"
    }
    assert places == {0, 1, 2, 3, 4}


def test_no_image_is_in_two_parts_of_the_sample(sample):
    digests = [
        set(
            concat(index_shard(shard) for shard in find_shards([str(sample / folder)]))
            .pairs["image_sha256"]
            .to_pylist()
        )
        for folder in ("landing", "labels/shards", "evaluation")
    ]
    assert len(set().union(*digests)) == sum(map(len, digests))


def test_evaluation_captions_are_right_and_complete(sample):
    assert {row["kind"] for row in truth(sample, "evaluation")} == {"complete"}
    assert len(truth(sample, "evaluation")) == SIZES["evaluation_pairs"]


def test_the_same_sample_again_writes_nothing_and_says_so(sample):
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert write_sample_crawl(sample, seed=3, **SIZES)["written"] is False
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 4}, {"pairs": 231}, {"evaluation_pairs": 26}])
def test_another_sample_is_never_written_over(sample, change):
    before = files(sample)
    with pytest.raises(InputError, match="another"):
        write_sample_crawl(sample, **{"seed": 3, **SIZES, **change})
    assert files(sample) == before


def test_a_folder_in_the_samples_place_is_never_written_over(tmp_path):
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing/mine.tar").write_bytes(b"precious")
    with pytest.raises(InputError, match="landing"):
        write_sample_crawl(tmp_path, **SIZES)
    assert files(tmp_path).keys() == {"landing/mine.tar"}


def test_a_file_in_the_samples_place_is_refused(tmp_path):
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(InputError, match="a file"):
        write_sample_crawl(tmp_path / "out", **SIZES)


def test_other_files_beside_the_sample_stay(tmp_path):
    (tmp_path / "dagster").mkdir()
    (tmp_path / "landing").mkdir()
    write_sample_crawl(tmp_path, pairs=3, judged_images=1, evaluation_pairs=1)
    assert (tmp_path / "dagster").is_dir()
    assert (tmp_path / MARKER).is_file()


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path, monkeypatch):
    class Interrupted(crawl.Parts):
        def evaluation(self, pairs: int, shard_pairs: int) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(crawl, "Parts", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample_crawl(tmp_path, **SIZES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SIZES)
def test_sizes_below_one_are_refused_by_name(tmp_path, name):
    with pytest.raises(InputError, match=name):
        write_sample_crawl(tmp_path / "out", **{**SIZES, name: 0})
    assert not (tmp_path / "out").exists()
