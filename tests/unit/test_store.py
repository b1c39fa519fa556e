"""Stores publish whole objects once, under keys that cannot leave them."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compalign_dagster.errors import InputError
from compalign_dagster.store import (
    LocalStore,
    ObjectChangedError,
    ObjectMissingError,
    Store,
    open_store,
)
from compalign_dagster.store.bucket import BucketStore


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


def test_listing_goes_on_after_any_key_whether_or_not_it_is_there(store):
    everything = ["a-b", "a/b", "a/c/d", "a0", "b"]
    for key in everything:
        store.put_new(key, b"x")
    for after in (*everything, "a", "a/", "a/bb", "a/c", "a/c/", "a/zz", "zz"):
        assert [item.key for item in store.list(after=after)] == [key for key in everything if key > after]
    assert [item.key for item in store.list("a/", after="a/b")] == ["a/c/d"]


def test_listing_reads_a_folder_only_when_it_gets_there(store, monkeypatch):
    for folder in "abc":
        store.put_new(f"{folder}/x", b"x")
    read: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: [read.append(Path(path).name), scandir(path)][1])
    listing = store.list()
    assert next(listing).key == "a/x"
    assert read == [store.root.name, "a"]
    assert [item.key for item in store.list(after="b/x")] == ["c/x"]
    assert read == [store.root.name, "a", store.root.name, "b", "c"]


def test_folders_are_what_lies_below_a_prefix_up_to_the_next_slash(store):
    for key in ("a/1", "a/b/2", "ab/3", "c", ".hidden/4", "a/.hidden/5"):
        path = store.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert list(store.folders()) == ["a/", "ab/"]
    assert list(store.folders("a")) == ["a/", "ab/"]
    assert list(store.folders("a/")) == ["a/b/"]
    assert list(store.folders("c/")) == list(store.folders("nothing/")) == []


@pytest.mark.parametrize("prefix", ["../", "/etc/", "a/../../", ".hidden/"])
def test_nothing_outside_the_folder_and_nothing_hidden_is_listed(store, prefix):
    store.put_new("a/x", b"x")
    (store.root / ".hidden").mkdir()
    (store.root / ".hidden" / "x").write_bytes(b"x")
    assert list(store.list(prefix)) == list(store.folders(prefix)) == []


def test_what_is_not_there_is_named(store):
    store.put_new("a/b", b"x")
    for use in (store.read, store.open, store.stat, store.fetch, lambda key: store.read_range(key, 0, 1)):
        for key in ("gone", "a", "a/b/c"):
            with pytest.raises(ObjectMissingError, match=key):
                use(key)
    assert issubclass(ObjectMissingError, FileNotFoundError)


def test_a_file_that_was_replaced_is_not_read_as_the_one_that_was_listed(store):
    store.put_new("a", b"old")
    stamp = store.stat("a").stamp
    assert store.read_range("a", 0, 3, stamp=stamp) == b"old"
    os.utime(store.path("a"), ns=(1, 1))
    for use in (lambda: store.read_range("a", 0, 3, stamp=stamp), lambda: store.open("a", stamp=stamp)):
        with pytest.raises(ObjectChangedError, match="another one"):
            use()


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


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///key", "s3://AKIA:hush@bucket/x", "s3://hush@bucket", "s3://b ucket", "https://u:hush@host/x"],
)
def test_a_url_with_credentials_or_without_a_bucket_is_refused_and_not_repeated(url):
    with pytest.raises(InputError) as caught:
        open_store(url)
    assert "hush" not in str(caught.value)


def test_a_bucket_is_opened_without_a_request_and_says_its_url(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = open_store("s3://bucket/some/prefix/")
    assert isinstance(store, BucketStore)
    assert store.url == "s3://bucket/some/prefix"
    with pytest.raises(InputError, match="store key"):
        open_store("s3://bucket/a/../b")


def test_a_store_opened_by_a_relative_path_stays_there_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = LocalStore(Path("here"))
    monkeypatch.chdir("/")
    assert store.root == tmp_path / "here"


def test_a_deleted_object_is_gone_its_key_is_free_and_deleting_nothing_is_no_error(store):
    store.put_new("a/b", b"1")
    store.put_new("a/c", b"2")
    store.delete("a/b")
    assert not store.exists("a/b")
    assert keys(store) == ["a/c"]
    for nothing in ("a/b", "a", "x/y/z"):
        store.delete(nothing)
    assert keys(store) == ["a/c"]
    assert store.put_new("a/b", b"again")
    assert store.read("a/b") == b"again"


def test_deleting_takes_the_hidden_name_of_a_killed_writer_along(store):
    store.put_new("a/b", b"a caption that has to go")
    store.put_new("a/c", b"stays")
    os.link(store.path("a/b"), store.root / "a" / ".killed.part")
    (store.root / "a" / ".other.part").write_bytes(b"somebody writes this")
    store.delete("a/b")
    assert sorted(path.name for path in (store.root / "a").iterdir()) == [".other.part", "c"]


@pytest.mark.parametrize("key", ["", "../out", "/etc/passwd", "a//b", "a/../b"])
def test_a_key_that_leaves_the_store_is_not_deleted(store, key):
    with pytest.raises(InputError, match="climbs"):
        store.delete(key)


def test_an_object_is_replaced_whole_and_loses_its_hidden_name(store):
    store.put_new("a/b", b"a caption that has to go")
    os.link(store.path("a/b"), store.root / "a" / ".killed.part")
    store.replace("a/b", b"", stamp=store.stat("a/b").stamp)
    assert store.read("a/b") == b""
    assert [path.name for path in (store.root / "a").iterdir()] == ["b"]


def test_an_object_that_somebody_changed_is_not_replaced(store):
    store.put_new("a/b", b"1")
    stamp = store.stat("a/b").stamp
    store.path("a/b").write_bytes(b"changed meanwhile")
    with pytest.raises(ObjectChangedError):
        store.replace("a/b", b"2", stamp=stamp)
    assert store.read("a/b") == b"changed meanwhile"
    assert [path.name for path in (store.root / "a").iterdir()] == ["b"]
    with pytest.raises(ObjectMissingError):
        store.replace("a/c", b"2", stamp=stamp)


def test_of_two_who_replace_the_same_object_one_wins(store, monkeypatch):
    """Both have looked at the object before either puts its bytes."""
    store.put_new("a/b", b"old")
    stamp, outcomes = store.stat("a/b").stamp, []
    whole = LocalStore.stat

    def slow(self, key):
        found = whole(self, key)
        time.sleep(0.2)
        return found

    def replace(body):
        try:
            store.replace("a/b", body, stamp=stamp)
            outcomes.append(body)
        except ObjectChangedError:
            outcomes.append(None)

    monkeypatch.setattr(LocalStore, "stat", slow)
    threads = [threading.Thread(target=replace, args=(body,)) for body in (b"one", b"other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 1
    assert store.read("a/b") in outcomes
    assert [item.key for item in store.list()] == ["a/b"]
