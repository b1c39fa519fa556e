"""Finding shards by pattern, and reading a member by its place."""

import logging
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def as_nobody(folder: Path):
    """Everybody may look into the folder; whoever is root is not, meanwhile."""
    folder.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("pattern", ["", "/**/*.tar", "/closed", "/closed/0.tar"])
def test_a_folder_that_may_not_be_read_is_an_error_and_never_looks_empty(pattern):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "closed").mkdir()
        for name in ("open.tar", "closed/0.tar"):
            (root / name).write_bytes(b"")
        (root / "closed").chmod(0)
        try:
            with as_nobody(root), pytest.raises(InputError, match="Permission denied"):
                names(f"{folder}{pattern}")
        finally:
            (root / "closed").chmod(0o755)


@pytest.mark.parametrize("pattern", ["x" * 5000, "~no-such-user-here/x"])
def test_a_path_that_cannot_be_followed_is_an_error_that_names_it(pattern):
    with pytest.raises(InputError, match="a path that can be read"):
        names(pattern)


def test_an_empty_pattern_is_not_the_folder_one_happens_to_be_in(landing, monkeypatch):
    monkeypatch.chdir(landing)
    with pytest.raises(InputError, match="at least one"):
        names("")


def test_two_stars_glued_to_a_name_match_within_one_part(landing):
    assert names(landing / "cc3m" / "**.tar") == ["00000.tar", "00001.tar"]


def test_a_name_that_is_not_utf8_is_refused(landing):
    Path(os.fsdecode(os.fsencode(landing / "cc3m") + b"/\xff.tar")).write_bytes(b"")
    with pytest.raises(InputError, match="a name in UTF-8") as refused:
        names(landing)
    str(refused.value).encode()


def test_links_to_nothing_and_pipes_are_left_out_with_a_warning_and_loops_end(landing, caplog):
    (landing / "gone.tar").symlink_to("nowhere")
    (landing / "loop.tar").symlink_to("loop.tar")
    (landing / "cc3m" / "self").symlink_to(".")
    os.mkfifo(landing / "pipe.tar")
    with caplog.at_level(logging.WARNING):
        assert len(names(landing)) == len(names(landing / "**" / "*.tar")) == 3
    for name in ("gone.tar", "loop.tar", "pipe.tar", "cc3m/self"):
        assert str(landing / name) in caplog.text


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
