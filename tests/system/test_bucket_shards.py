"""Compressed shards in a bucket, over HTTP: indexed and read forwards in one pass, never two deliveries mixed."""

import gzip
import hashlib

import pytest

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.store import ObjectChangedError, open_store
from tests.support import faults as damaged
from tests.support import shard_builder as build

pytestmark = [pytest.mark.system]


@pytest.fixture
def bucket(s3, monkeypatch):
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    return open_store(s3.url)


@pytest.mark.parametrize("builder", [damaged.gz_good, damaged.gz_cut, damaged.gz_of_a_lying_size])
def test_a_compressed_shard_in_a_bucket_has_the_same_index_as_on_a_disk(builder, bucket, tmp_path):
    bucket.put_new(damaged.GZ, builder())
    shard = Shard(damaged.GZ, bucket, damaged.GZ, bucket.stat(damaged.GZ).stamp)
    found = index_shard(shard)
    assert found == index_shard(build.place(tmp_path, builder(), damaged.GZ))
    with MemberReader() as members:
        for row in found.pairs.to_pylist():
            image = members.read(shard, row["image_offset"], row["image_length"])
            assert hashlib.sha256(image).hexdigest() == row["image_sha256"]
        assert members.restarts == 0


@pytest.mark.parametrize("name", [damaged.TAR, damaged.GZ])
def test_a_shard_that_was_delivered_again_is_not_read_as_the_one_that_was_sealed(name, bucket, s3):
    data = build.good_shard(3)
    bucket.put_new(name, gzip.compress(data) if name == damaged.GZ else data)
    shard = Shard(name, bucket, name, bucket.stat(name).stamp)
    row = index_shard(shard).pairs.to_pylist()[0]
    s3.client.put_object(Bucket=s3.bucket, Key=name, Body=build.good_shard(4))
    with pytest.raises(ObjectChangedError):
        index_shard(shard)
    with MemberReader() as members, pytest.raises(ObjectChangedError):
        members.read(shard, row["image_offset"], row["image_length"])
