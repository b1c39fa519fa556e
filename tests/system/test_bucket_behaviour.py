"""One list of what a store does, true of a folder and of a bucket on a real server over HTTP."""

import hashlib
import itertools
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import Shard, read_member
from compalign_dagster.errors import InputError
from compalign_dagster.store import (
    LocalStore,
    ObjectChangedError,
    ObjectMissingError,
    StoreError,
    open_store,
)
from compalign_dagster.store.bucket import BucketStore
from tests.support import shard_builder as build
from tests.support.fault_proxy import Answer, pass_on
from tests.support.s3_server import client_of

pytestmark = [pytest.mark.system]

ODD = ["with space", "a+b", "50%", "100%25", "#1?x=y&z", "ü/日本/🦊", "'\"<>", "a=b;c,d", "~tilde", "x" * 200]


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    bucket = request.getfixturevalue("s3")
    return BucketStore(f"{bucket.url}/some prefix", bucket.client)


def replace(store, key, body):
    """What nobody is meant to do: other bytes under an old name."""
    if isinstance(store, LocalStore):
        store.path(key).write_bytes(body)
    else:
        bucket, _, root = store.url.removeprefix("s3://").partition("/")
        store.client.put_object(Bucket=bucket, Key=f"{root}/{key}", Body=body)


def keys(store, prefix="", after=""):
    return [item.key for item in store.list(prefix, after=after)]


def test_an_object_is_read_back_whole_in_part_as_a_stream_and_as_a_file(store):
    body = b"first line\n" + bytes(range(256)) * 10_000
    assert store.put_new("a/b.bin", body)
    assert store.read("a/b.bin") == body
    assert store.read_range("a/b.bin", 3, 4) == body[3:7]
    assert store.read_range("a/b.bin", len(body) - 2, 100) == body[-2:]
    assert store.read_range("a/b.bin", len(body) + 5, 10) == store.read_range("a/b.bin", 0, 0) == b""
    with store.open("a/b.bin") as stream:
        assert stream.readline() == b"first line\n"
        assert stream.read() == body[11:]
    assert stream.closed
    assert store.fetch("a/b.bin").read_bytes() == body
    assert store.fetch("a/b.bin").name == "b.bin"
    assert store.stat("a/b.bin") == next(iter(store.list()))
    assert store.stat("a/b.bin").size == len(body)


def test_an_empty_object_is_an_object(store):
    assert store.put_new("empty", b"")
    assert store.read("empty") == store.read_range("empty", 0, 10) == store.fetch("empty").read_bytes() == b""
    assert store.stat("empty").size == 0


def test_a_file_is_published_like_bytes(store, tmp_path):
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    assert store.put_new("big", tmp_path / "source")
    assert store.read("big") == b"x" * 3_000_000


def test_a_source_that_is_not_there_publishes_nothing(store, tmp_path):
    with pytest.raises(FileNotFoundError):
        store.put_new("a", tmp_path / "no such source")
    assert not store.exists("a")


def test_odd_names_come_back_as_they_were(store):
    for key in ODD:
        assert store.put_new(key, key.encode())
        assert store.read(key) == key.encode()
    assert keys(store) == sorted(ODD)
    for at, key in enumerate(sorted(ODD)):
        assert keys(store, after=key) == sorted(ODD)[at + 1 :]


def test_nothing_is_overwritten(store):
    assert store.put_new("a", b"first")
    assert not store.put_new("a", b"second")
    assert not store.put_new("a", b"first")
    assert store.read("a") == b"first"


def test_what_is_not_there_is_named(store):
    store.put_new("here/x", b"x")
    for use in (store.read, store.open, store.stat, store.fetch, lambda key: store.read_range(key, 0, 1)):
        for key in ("gone", "here"):
            with pytest.raises(ObjectMissingError, match=key):
                use(key)
            with pytest.raises(FileNotFoundError):
                use(key)
    assert not store.exists("gone")


def test_an_object_that_was_replaced_is_not_read_as_the_one_that_was_listed(store):
    store.put_new("a", b"old one")
    stamp = store.stat("a").stamp
    assert store.read_range("a", 0, 3, stamp=stamp) == b"old"
    with store.open("a", stamp=stamp) as stream:
        assert stream.read() == b"old one"
    copy = store.fetch("a")
    replace(store, "a", b"new one")
    assert store.stat("a").stamp != stamp
    for use in (
        lambda: store.read_range("a", 0, 3, stamp=stamp),
        lambda: store.read_range("a", 0, 0, stamp=stamp),
        lambda: store.open("a", stamp=stamp),
    ):
        with pytest.raises(ObjectChangedError, match="another one"):
            use()
    assert store.fetch("a").read_bytes() == b"new one"
    assert isinstance(store, LocalStore) or copy.read_bytes() == b"old one"


def test_listing_and_folders_are_in_key_order_without_what_is_hidden(store):
    for key in ("b/2", "b/10", "a", "b-side", "c/d/e"):
        store.put_new(key, b"x")
    for key in (".hidden/x", "b/.12ab.part"):
        if isinstance(store, LocalStore):
            store.path(key).parent.mkdir(exist_ok=True)
        replace(store, key, b"x")
    assert keys(store) == ["a", "b-side", "b/10", "b/2", "c/d/e"]
    assert keys(store, "b") == ["b-side", "b/10", "b/2"]
    assert keys(store, "b/", after="b/10") == ["b/2"]
    assert keys(store, "nothing/") == keys(store, ".hidden/") == keys(store, "../") == []
    assert list(store.folders()) == ["b/", "c/"]
    assert list(store.folders("c/")) == ["c/d/"]
    assert list(store.folders("c")) == ["c/"]
    assert list(store.folders("b/")) == list(store.folders(".hidden/")) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/./b", "a\\b", "a\0b", "a/"])
def test_a_key_that_would_leave_the_store_is_refused(store, key):
    for use in (store.read, store.exists, store.fetch, lambda bad: store.put_new(bad, b"x")):
        with pytest.raises(InputError, match="store key"):
            use(key)


def test_of_many_writers_of_one_key_exactly_one_wins_and_its_object_is_whole(store):
    bodies = [bytes([at]) * 200_000 for at in range(8)]
    won: list[bytes] = []
    start = threading.Barrier(len(bodies))

    def write(body):
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


PARTS = st.text(st.sampled_from("ab-./0~é日"), min_size=1, max_size=3).filter(
    lambda part: "/" not in part and part not in (".", "..")
)
KEYS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), max_size=8, unique=True)
_number = itertools.count()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=KEYS, prefix=st.sampled_from(["", "a", "a/", "b/a", "é", "."]), after=st.sampled_from(["", "a", "a/b", "b~"])
)
def test_a_folder_and_a_bucket_list_the_same_keys_in_the_same_order(tmp_path, s3, wanted, prefix, after):
    number = next(_number)
    names: list[str] = []
    for key in wanted:  # on a disk a name is a file or a folder
        if not any(key.startswith(f"{other}/") or other.startswith(f"{key}/") for other in names):
            names.append(key)
    folder, bucket = LocalStore(tmp_path / str(number)), BucketStore(f"{s3.url}/{number}", s3.client)
    for key in names:
        for store in (folder, bucket):
            if isinstance(store, LocalStore):
                store.path(key).parent.mkdir(parents=True, exist_ok=True)
            replace(store, key, b"x")
    model = sorted(key for key in names if not any(part.startswith(".") for part in key.split("/")))
    expected = [key for key in model if key.startswith(prefix) and key > after]
    assert keys(folder, prefix, after) == keys(bucket, prefix, after) == expected
    tails = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    below = {prefix + tail.partition("/")[0] + "/" for tail in tails if "/" in tail}
    expected = sorted(name for name in below if not any(part.startswith(".") for part in name.split("/")))
    assert list(folder.folders(prefix)) == list(bucket.folders(prefix)) == expected


def test_a_shard_in_a_bucket_has_the_same_index_as_on_a_disk(tmp_path, s3):
    data = build.captions_with_nulls()
    stores = [LocalStore(tmp_path / "store"), BucketStore(s3.url, s3.client)]
    shards = []
    for store in stores:
        store.put_new("cc3m/00000.tar", data)
        shards.append(Shard("cc3m/00000.tar", store, "cc3m/00000.tar"))
    on_disk, in_bucket = map(index_shard, shards)
    assert in_bucket == on_disk
    row = in_bucket.pairs.to_pylist()[0]
    image = read_member(shards[1], row["image_offset"], row["image_length"])
    assert hashlib.sha256(image).hexdigest() == row["image_sha256"]


# What only a bucket does.


def test_a_large_file_goes_up_in_parts_and_comes_back_whole(s3, tmp_path):
    body = bytes(range(251)) * 50_000  # 12.5 MB
    (tmp_path / "source").write_bytes(body)
    store = BucketStore(s3.url, s3.client, part_bytes=5 << 20)
    assert store.put_new("big", tmp_path / "source")
    assert store.read("big") == body
    assert store.fetch("big").read_bytes() == body
    assert store.read_range("big", (5 << 20) - 2, 4) == body[(5 << 20) - 2 : (5 << 20) + 2]
    assert not store.put_new("big", tmp_path / "source")
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=s3.bucket)


def test_names_that_a_store_cannot_have_are_left_out_aloud(s3, caplog):
    for key in ("good", "bad//name", "marker/"):
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"")
    assert keys(BucketStore(s3.url, s3.client)) == ["good"]
    assert "bad//name" in caplog.text
    assert "marker" not in caplog.text


def three_a_page(request):
    request.path += "&max-keys=3"
    pass_on(request)


def test_listing_asks_for_a_page_when_it_is_read(s3, faults):
    for number in range(8):
        s3.client.put_object(Bucket=s3.bucket, Key=f"p/{number}", Body=b"")
    faults.inject("list", three_a_page, first=None)
    listing = BucketStore(s3.url, client_of(faults.endpoint)).list("p/", after="p/0")
    assert next(listing).key == "p/1"
    assert faults.count("list") == 1
    assert [item.key for item in listing] == [f"p/{number}" for number in range(2, 8)]
    assert faults.count("list") == 3


@pytest.mark.parametrize("instead", ["x/c", "x/b", "y/a", "w/a"])
def test_a_listing_that_is_out_of_order_repeats_a_key_or_leaves_its_prefix_is_refused(s3, faults, instead):
    for key in ("x/a", "x/b"):
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"")

    def shuffle(request):
        answer = request.forward()
        swapped = answer.body.replace(b"<Key>x/a<", f"<Key>{instead}<".encode())
        request.send_head(Answer(answer.status, answer.headers, swapped))
        request.send(swapped)

    faults.inject("list", shuffle)
    with pytest.raises(StoreError, match="order"):
        keys(BucketStore(f"{s3.url}/x", client_of(faults.endpoint)))


def test_boto3s_own_chain_opens_a_bucket_from_the_environment(s3, monkeypatch):
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    store = open_store(f"{s3.url}/x")
    assert store.put_new("a", b"x")
    assert store.read("a") == b"x"


def test_copies_are_removed_when_the_process_ends(s3):
    BucketStore(s3.url, s3.client).put_new("a.parquet", b"bytes")
    code = f"from compalign_dagster.store import open_store; print(open_store({s3.url!r}).fetch('a.parquet'))"
    env = {**s3.env(), "PATH": "", "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    assert path.endswith("/a.parquet")
    with pytest.raises(FileNotFoundError):
        open(path)  # noqa: PTH123, SIM115


def test_deleting_removes_one_object_and_nothing_where_there_is_none(store):
    for key in ("a/b", "a/b2", "a/c"):
        store.put_new(key, b"x")
    for _ in range(2):
        store.delete("a/b")
    assert [item.key for item in store.list()] == ["a/b2", "a/c"]
    assert store.put_new("a/b", b"again")
    assert store.read("a/b") == b"again"


def test_a_redaction_replaces_one_object_unless_somebody_changed_it_meanwhile(store):
    store.put_new("a/b", b"a caption that has to go")
    stamp = store.stat("a/b").stamp
    store.replace("a/b", b"", stamp=stamp)
    assert store.read("a/b") == b""
    with pytest.raises(ObjectChangedError):
        store.replace("a/b", b"by somebody who looked before", stamp=stamp)
    with pytest.raises(StoreError):
        store.replace("a/c", b"x", stamp=stamp)
    assert [(item.key, item.size) for item in store.list()] == [("a/b", 0)]
