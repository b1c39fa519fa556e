"""`caption_signals` of a batch: one row a pair; with and without the model it says which."""

import pytest

from assets import raw_crawl
from assets.caption_signals import publish_signals
from compalign_dagster import decisions, parquet
from compalign_dagster.crawl import batches
from compalign_dagster.crawl.index import Budgets
from compalign_dagster.errors import CompalignError
from compalign_dagster.signals import language
from compalign_dagster.store import LocalStore
from resources.storage import Storage
from tests.support import shard_builder as build


@pytest.fixture
def storage(settings):
    """A batch of two shards, not indexed yet."""
    landing = settings.home / "landing"
    build.place(landing, build.good_shard(3), "a/0.tar")
    build.place(landing, build.good_shard(2), "b/0.tar")
    stamps = [LocalStore(landing).stat(name) for name in ("a/0.tar", "b/0.tar")]
    added = [{"shard": item.key, "size": item.size, "stamp": item.stamp} for item in stamps]
    found = Storage.from_settings(settings)
    decisions.decide(found.store, batches.NAME, {"added": added, "superseded": [], "removed": []}, after=0)
    return found


def test_it_says_what_to_materialise_first(storage):
    with pytest.raises(CompalignError, match="Materialise raw_crawl first"):
        publish_signals(storage.store, "batch-00001")


def test_every_pair_has_a_row_and_installing_the_model_makes_new_work(storage, monkeypatch):
    [batch] = batches.read_log(storage.store)
    raw_crawl.index_batch(storage, batch, Budgets())
    with monkeypatch.context() as without:
        without.setattr(language, "model_file", lambda: None)
        artifact, reused = publish_signals(storage.store, batch.key)
        assert not reused
        assert publish_signals(storage.store, batch.key)[1]
    assert artifact.facts["languages"] == {"absent": 5}
    assert "not installed" in artifact.facts["language_model"]
    rows = [row for name in artifact.names() for row in parquet.read(artifact.fetch(name)).to_pylist()]
    assert [(row["shard"], row["key"]) for row in rows] == [
        ("a/0.tar", "00000"), ("a/0.tar", "00001"), ("a/0.tar", "00002"), ("b/0.tar", "00000"), ("b/0.tar", "00001"),
    ]  # fmt: skip
    if language.model_file():
        present, reused = publish_signals(storage.store, batch.key)
        assert not reused
        assert present.facts["languages"] == {"en": 5}
        assert present.facts["language_model"] == "lid.176.ftz"
