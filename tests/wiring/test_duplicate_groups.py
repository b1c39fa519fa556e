"""`duplicate_groups` over a small crawl: formed from what the ledger lists, reused while the crawl is the same."""

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.duplicate_groups import publish_groups
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.definitions import build_defs
from compalign_dagster.errors import CompalignError
from compalign_dagster.scoring.tables import LEDGER
from compalign_dagster.versions import digest_bytes, digest_json
from resources.storage import Storage
from tests.support.shard_builder import picture

_HASHES = {"a.tar": ["00", "0f"], "b.tar": ["00", "ffff"]}


def index(storage, tmp_path, shard):
    """Land a shard of two pictures, publish its index with the hashes above, and give its row of a ledger."""
    store = storage.store
    pictures = [picture(len(shard) * at + ord(shard[0])) for at in range(2)]
    storage.landing.put_new(shard, b"".join(pictures))
    rows = [
        {"shard": shard, "key": str(at), "image_sha256": digest_bytes(pictures[at]), "image_phash": text.zfill(16),
         "image_offset": at * len(pictures[0]), "image_length": len(pictures[at])}
        for at, text in enumerate(_HASHES[shard])
    ]  # fmt: skip
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    store.put_new(f"indexed/{shard}", path)
    return {
        "shard": shard, "batch": "b1", "scores_key": "-", "work_key": "-", "data_version": "-",
        "pairs_key": f"indexed/{shard}", "index_version": digest_json(rows), "pairs": 2, "scored": 2, "quarantined": 0,
        "rejected": 0,
    }  # fmt: skip


def ledger(store, tmp_path, rows, models=("m1",)):
    """Publish a ledger that lists these shards once for each model."""
    rows = [{**row, "model_version": model} for model in models for row in rows]
    path = parquet.write(parquet.from_rows(rows, LEDGER), tmp_path / "ledger.parquet")
    found = artifacts.publish(
        store, "score_ledger", digest_json(rows)[:32], {"ledger.parquet": path},
        code_version=1, inputs=[], config={}, facts={},
    )  # fmt: skip
    latest.point(found)


@pytest.fixture
def storage(settings):
    return Storage.from_settings(settings)


def test_groups_cross_shards_and_count_each_sample_once_whatever_the_number_of_models(storage, tmp_path):
    ledger(storage.store, tmp_path, [index(storage, tmp_path, shard) for shard in _HASHES], models=("m1", "m2"))
    artifact, reused = publish_groups(storage, 4)
    rows = parquet.read(artifact.fetch("duplicates.parquet")).to_pylist()
    assert not reused
    assert [(row["shard"], row["key"]) for row in rows] == [("a.tar", "0"), ("a.tar", "1"), ("b.tar", "0")]
    assert (artifact.facts["images"], artifact.facts["groups"], artifact.facts["shards"]) == (4, 1, 2)
    assert artifact.inputs[0].kind == "score_ledger"


def test_another_model_makes_no_work_but_another_distance_or_shard_does(storage, tmp_path):
    rows = [index(storage, tmp_path, shard) for shard in _HASHES]
    ledger(storage.store, tmp_path, rows)
    first, _ = publish_groups(storage, 4)
    ledger(storage.store, tmp_path, rows, models=("m2",))
    again, reused = publish_groups(storage, 4)
    assert reused
    assert again.data_version == first.data_version
    wider, reused = publish_groups(storage, 12)
    assert not reused
    assert wider.facts["grouped"] == 4
    ledger(storage.store, tmp_path, rows[:1])
    fewer, reused = publish_groups(storage, 4)
    assert not reused
    assert fewer.facts["images"] == 2


def test_it_says_what_to_materialise_first(storage):
    with pytest.raises(CompalignError, match="Materialise score_ledger first"):
        publish_groups(storage, 4)


def test_the_asset_reports_groups_and_shows_them(storage, settings, tmp_path):
    ledger(storage.store, tmp_path, [index(storage, tmp_path, shard) for shard in _HASHES])
    defs = build_defs(settings=settings)
    asset = next(found for found in defs.assets if found.key == dg.AssetKey("duplicate_groups"))
    result = dg.materialize([asset], resources=defs.resources)
    (event,) = result.get_asset_materialization_events()
    metadata = {name: value.value for name, value in event.materialization.metadata.items()}
    assert metadata["share of images in groups"] == 0.75
    assert metadata["largest group"] == 3
    assert metadata["groups"] == 1
    assert " | 3 | 3 |" in metadata["largest groups"]
    assert metadata["preview"].startswith("![preview](data:image/jpeg;base64,")


def test_a_shard_that_changed_since_costs_its_pictures_and_not_the_groups(storage, settings, tmp_path):
    ledger(storage.store, tmp_path, [index(storage, tmp_path, shard) for shard in _HASHES])
    whole = (settings.home / "landing" / "a.tar").read_bytes()
    (settings.home / "landing" / "a.tar").write_bytes(b"\0" * len(whole))
    (settings.home / "landing" / "b.tar").unlink()
    artifact, _ = publish_groups(storage, 4)
    assert artifact.facts["groups"] == 1
    assert artifact.has_view("preview.jpg")


def test_what_a_sheet_shows_is_listed_beside_it_so_that_a_purge_finds_it(storage, tmp_path):
    ledger(storage.store, tmp_path, [index(storage, tmp_path, shard) for shard in _HASHES])
    artifact, _ = publish_groups(storage, 4)
    listed = storage.store.read(artifact.file_key("preview.txt")).decode().splitlines()
    assert {line.rpartition(" ")[0] for line in listed} == {"a.tar 0", "a.tar 1", "b.tar 0"}
