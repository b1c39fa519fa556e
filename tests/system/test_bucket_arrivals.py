"""Arrivals over HTTP: what a real server makes of prefixes, positions and names between the folders."""

import pytest

from compalign_dagster.crawl.landed import Complete, at_root
from compalign_dagster.crawl.look import Rules
from compalign_dagster.errors import InputError
from compalign_dagster.store.bucket import BucketStore
from tests.support.arrivals import Arrivals

pytestmark = [pytest.mark.system]


@pytest.fixture
def arrivals(s3) -> Arrivals:
    return Arrivals(
        BucketStore(f"{s3.url}/store", s3.client),
        BucketStore(f"{s3.url}/landing", s3.client),
        Rules(complete=Complete(settle_seconds=60), sweep=600),
    )


@pytest.fixture
def put(s3):
    return lambda name, body=b"x": s3.client.put_object(Bucket=s3.bucket, Key=f"landing/{name}", Body=body)


def test_what_lies_beside_the_folders_is_found_without_what_lies_in_them(arrivals, put):
    for name in ("a.tar", "a/0.tar", "a/\U0010fffe.tar", "a0.tar", "ü/0.tar", "ü.tar", "z.tar"):
        put(name)
    found = [item.key for item in at_root(arrivals.landing) if item.size >= 0]
    assert found == ["a.tar", "a0.tar", "z.tar", "ü.tar"]


def test_arrivals_other_bytes_and_removals_reach_the_log_once(arrivals, put, s3):
    for name in ("a/0.tar", "a/1.tar", "a/1_stats.json", "b/deep/0.tar.gz", "b/0.tar", "top.tgz", ".hidden/0.tar"):
        put(name)
    arrivals.tick()
    assert set(arrivals.live) == {"a/0.tar", "a/1.tar", "b/deep/0.tar.gz", "b/0.tar", "top.tgz"}
    put("a/2.tar")
    put("zz.tar")
    assert [item.shard for item in arrivals.tick().register[0].added] == ["a/2.tar", "zz.tar"]
    put("a/0.tar", b"other")
    s3.client.delete_object(Bucket=s3.bucket, Key="landing/b/0.tar")
    assert not arrivals.tick().register, "the fast pass is past them and the sweep rests"
    [batch] = arrivals.tick(600).register
    assert ([item.shard for item in batch.superseded], batch.removed) == (["a/0.tar"], ("b/0.tar",))
    assert not arrivals.tick(600).register
    arrivals.check_history()


def test_a_prefix_that_was_emptied_is_told_and_then_fails_the_tick_and_removes_nothing(arrivals, put, s3):
    put("a/0.tar")
    arrivals.tick()
    s3.client.delete_object(Bucket=s3.bucket, Key="landing/a/0.tar")
    assert "no shard at all" in arrivals.tick(600).message
    with pytest.raises(InputError, match="no shard at all"):
        arrivals.tick(30)
    assert set(arrivals.live) == {"a/0.tar"}
