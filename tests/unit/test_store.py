"""Stores publish whole objects once, under keys that cannot leave them."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compalign_dagster.errors import InputError
from compalign_dagster.store import BucketStore, LocalStore, Store, open_store


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def keys(store: Store, prefix: str = "") -> list[str]:
    return [item.key for item in store.list(prefix)]


def test_an_object_is_read_back_whole_or_in_part(store):
    assert store.put_new("a/b.txt", b"0123456789")
    assert store.read("a/b.txt") == b"0123456789"
    assert store.read_range("a/b.txt", 3, 4) == b"3456"
    assert store.read_range("a/b.txt", 8, 100) == b"89"
    with store.open("a/b.txt") as stream:
        assert stream.read(2) == b"01"
    assert store.fetch("a/b.txt").read_bytes() == b"0123456789"
    assert store.stat("a/b.txt").size == 10


def test_a_file_is_published_like_bytes(store, tmp_path):
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    assert store.put_new("big", tmp_path / "source")
    assert store.stat("big").size == 3_000_000


def test_nothing_is_overwritten(store):
    assert store.put_new("a", b"first")
    assert not store.put_new("a", b"second")
    assert store.read("a") == b"first"


def test_of_many_writers_of_one_key_exactly_one_wins_and_its_object_is_whole(store):
    bodies = [bytes([at]) * 200_000 for at in range(8)]
    won: list[bytes] = []
    start = threading.Barrier(len(bodies))

    def write(body: bytes) -> None:
        start.wait()
        if store.put_new("contested", body):
            won.append(body)

    threads = [threading.Thread(target=write, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("contested") == won[0]
    assert sorted(path.name for path in store.root.iterdir()) == ["contested"]


def test_a_failed_write_leaves_nothing_behind(store, tmp_path):
    with pytest.raises(FileNotFoundError):
        store.put_new("a/b", tmp_path / "no such source")
    assert not store.exists("a/b")
    assert list((store.root / "a").iterdir()) == []


def test_half_written_objects_are_not_objects(store, monkeypatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", die)
    with pytest.raises(KeyboardInterrupt):
        store.put_new("a", b"x")
    assert keys(store) == []
    assert not store.exists("a")


def test_listing_is_by_key_prefix_in_key_order_without_hidden_files(store):
    for key in ("b/2", "b/10", "a", "b-side", "c/d/e"):
        store.put_new(key, b"x")
    (store.root / "b" / ".12ab.part").write_bytes(b"unfinished")
    (store.root / ".hidden").mkdir()
    (store.root / ".hidden" / "x").write_bytes(b"x")
    assert keys(store) == ["a", "b-side", "b/10", "b/2", "c/d/e"]
    assert keys(store, "b") == ["b-side", "b/10", "b/2"]
    assert keys(store, "b/") == ["b/10", "b/2"]
    assert keys(store, "b/1") == ["b/10"]
    assert keys(store, "nothing/") == []


def test_the_stamp_changes_with_the_object(store):
    store.put_new("a", b"x")
    before = store.stat("a")
    assert before == next(iter(store.list()))
    path = store.path("a")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert store.stat("a").stamp != before.stamp


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a\\b", "a\0b", "a/"])
def test_a_key_that_would_leave_the_folder_is_refused(store, key):
    for use in (store.read, store.exists, lambda bad: store.put_new(bad, b"x")):
        with pytest.raises(InputError, match="store key"):
            use(key)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(max_size=30))
def test_no_key_at_all_leads_out_of_the_folder(store, key):
    try:
        path = store.path(key)
    except InputError:
        return
    assert store.root in Path(os.path.normpath(path)).parents


def test_a_store_is_a_folder_or_an_s3_url(tmp_path):
    assert isinstance(open_store(str(tmp_path)), LocalStore)
    with pytest.raises(InputError, match="another scheme"):
        open_store("https://example.org/x")


@pytest.fixture
def bucket(tmp_path):
    """An object store on this disk, through the same client as a real bucket."""
    (tmp_path / "bucket").mkdir()
    return BucketStore(f"file://{tmp_path}/bucket")


def test_a_bucket_publishes_reads_and_lists_as_a_folder_does(bucket):
    assert bucket.put_new("b/2", b"0123456789")
    assert not bucket.put_new("b/2", b"second")
    bucket.put_new("b-side", b"x")
    assert bucket.read("b/2") == b"0123456789"
    assert bucket.read_range("b/2", 3, 4) == b"3456"
    assert bucket.stat("b/2").size == 10
    assert keys(bucket) == ["b-side", "b/2"]
    assert keys(bucket, "b/") == ["b/2"]
    assert not bucket.exists("b/3")
    with pytest.raises(FileNotFoundError):
        bucket.read("b/3")
    assert bucket.fetch("b/2").read_bytes() == b"0123456789"


def test_an_object_of_a_bucket_opens_as_an_ordinary_file(bucket):
    body = b"first line\nsecond\n" + bytes(3_000_000)
    bucket.put_new("big", body)
    with bucket.open("big") as stream:
        assert stream.readline() == b"first line\n"
        assert stream.read() == body[11:]
    assert stream.closed


def test_a_store_opened_by_a_relative_path_stays_there_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = LocalStore(Path("here"))
    monkeypatch.chdir("/")
    assert store.root == tmp_path / "here"
