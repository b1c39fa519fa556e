"""Finding shards by pattern, and reading a member by its place."""

import pytest

from compalign_dagster.crawl.shards import Shard, find_shards, read_member
from compalign_dagster.errors import InputError
from compalign_dagster.store import LocalStore


@pytest.fixture
def landing(tmp_path):
    for name in ("cc3m/00001.tar", "cc3m/00000.tar", "laion/deep/00000.tar", "cc3m/00000.parquet",
                 ".hidden/0.tar", "cc3m/.0.tar", "cc3m/1.tar.part"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(*patterns: object) -> list[str]:
    return [shard.name for shard in find_shards([str(pattern) for pattern in patterns])]


def test_a_folder_means_every_tar_below_it_sorted_and_nothing_hidden(landing):
    assert names(landing) == ["cc3m/00000.tar", "cc3m/00001.tar", "laion/deep/00000.tar"]


def test_names_are_relative_to_what_comes_before_the_first_wildcard(landing):
    assert names(landing / "**" / "*.tar") == names(landing)
    assert names(landing / "cc3m" / "*.tar") == ["00000.tar", "00001.tar"]
    assert names(landing / "*" / "00000.tar") == ["cc3m/00000.tar"]
    assert names(landing / "cc3*") == ["cc3m/00000.tar", "cc3m/00001.tar"]
    assert names(landing / "cc3m" / "0000[1-9].tar") == ["00001.tar"]


def test_a_file_is_named_by_itself(landing):
    assert names(landing / "cc3m" / "00000.tar") == ["00000.tar"]


def test_a_shard_named_by_two_patterns_is_found_once(landing):
    assert names(landing, landing / "**" / "*.tar", landing / "cc3m" / "00000.tar") == names(landing)


@pytest.mark.parametrize("pattern", ["nothing", "cc3m/*.tgz", "missing/*.tar"])
def test_a_pattern_that_matches_nothing_is_an_error_that_names_it(landing, pattern):
    with pytest.raises(InputError, match="at least one"):
        names(landing, landing / pattern)


def test_two_shards_may_not_share_a_name(landing):
    with pytest.raises(InputError, match="common parent"):
        names(landing / "cc3m", landing / "laion" / "deep")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(InputError, match="another scheme"):
        find_shards(["gopher://bucket/prefix"])


def test_the_corpus_is_the_first_folder_or_crawl(tmp_path):
    store = LocalStore(tmp_path)
    assert Shard("cc3m/x/0.tar", store, "k").corpus == "cc3m"
    assert Shard("0.tar", store, "k").corpus == "crawl"


def test_a_member_is_read_by_its_place_and_a_short_shard_is_an_error(landing):
    shard = find_shards([str(landing / "cc3m" / "00000.tar")])[0]
    assert read_member(shard, 5, 5) == b"00000"
    with pytest.raises(InputError, match="changed after it was indexed"):
        read_member(shard, 5, 500)


def test_prefixes_and_globs_of_a_bucket_name_shards_as_a_folder_does(landing, monkeypatch):
    from compalign_dagster.crawl import shards

    monkeypatch.setattr(shards, "open_store", lambda url: LocalStore(landing / url.removeprefix("s3://bucket/")))
    assert names("s3://bucket/cc3m") == ["00000.tar", "00001.tar"]
    assert names("s3://bucket/cc3m/") == ["00000.tar", "00001.tar"]
    assert names("s3://bucket/cc3m/00001.tar") == ["00001.tar"]
    assert names("s3://bucket/laion/**/*.tar") == ["deep/00000.tar"]
    assert names("s3://bucket/cc3m/*0.tar") == ["00000.tar"]
