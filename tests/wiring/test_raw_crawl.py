"""`raw_crawl`: its conservation checks count the published rows, and a replay reads only what it must."""

import dagster as dg
import pytest

from assets import raw_crawl
from assets.checks import raw_crawl as checks
from assets.partitions import CRAWL_BATCHES
from compalign_dagster import artifacts, decisions, latest, parquet
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.crawl import batches
from compalign_dagster.crawl.index import Budgets
from compalign_dagster.crawl.reasons import RETRYABLE
from compalign_dagster.store import LocalStore
from resources.storage import Storage
from tests.support import shard_builder as build

SMALL, LARGE = Budgets(image_pixels=5000), Budgets(image_pixels=50_000)


@pytest.fixture
def storage(settings):
    """A batch of three shards; one has a picture above the small budget, one an empty caption."""
    landing = settings.home / "landing"
    large = [("big.png", build.picture(5, (200, 150), "PNG")), ("big.txt", b"a large one")]
    build.place(landing, build.good_shard(3), "a/0.tar")
    build.place(landing, build.tar([*build.samples(2), *large]), "a/1.tar")
    build.place(landing, build.empty_caption(), "b/0.tar")
    found = Storage.from_settings(settings)
    store = LocalStore(landing)
    stamps = [store.stat(name) for name in ("a/0.tar", "a/1.tar", "b/0.tar")]
    value = {"added": [{"shard": item.key, "size": item.size, "stamp": item.stamp} for item in stamps],
             "superseded": [], "removed": []}  # fmt: skip
    decisions.decide(found.store, batches.NAME, value, after=0)
    return found


def indexed(storage: Storage, budgets: Budgets, *, replay: bool = False) -> tuple[Artifact, bool]:
    [batch] = batches.read_log(storage.store)
    return raw_crawl.index_batch(storage, batch, budgets, replay=RETRYABLE if replay else None)


def versions(artifact: Artifact) -> dict[str, str]:
    rows = parquet.read(artifact.fetch("shards.parquet")).to_pylist()
    return {row["shard"]: row["index_version"] for row in rows}


def makers(artifact: Artifact) -> dict[str, int]:
    """Which pixel budget made each shard's index."""
    shards = (artifacts.load(artifact.store, item.key) for item in artifact.inputs)
    return {shard.facts["shard"]: shard.manifest["config"]["image_pixels"] for shard in shards}


def test_a_replay_reads_only_shards_with_a_refusal_that_a_fix_may_take_away(storage):
    before, _ = indexed(storage, SMALL)
    after, reused = indexed(storage, LARGE, replay=True)
    assert not reused
    assert makers(after) == {"a/0.tar": 5000, "a/1.tar": 50_000, "b/0.tar": 5000}
    assert after.facts["shards_read_again"] == ["a/1.tar"]
    assert after.facts["replayed"]["image_too_large"] == {"recovered": 1, "remaining": 0}
    assert after.facts["pairs"] == before.facts["pairs"] + 1
    assert latest.require(storage.store, raw_crawl.KIND, after.partition).data_version == after.data_version
    assert indexed(storage, LARGE, replay=True)[1], "the second replay has nothing to do"
    changed = {name for name, version in versions(after).items() if version != versions(before)[name]}
    assert changed == {"a/1.tar"}, "so that only this shard is scored again"


def test_a_replay_ends_with_the_bytes_of_indexing_everything(storage):
    indexed(storage, SMALL)
    replayed, _ = indexed(storage, LARGE, replay=True)
    whole, _ = indexed(storage, LARGE)
    assert versions(replayed) == versions(whole)
    assert makers(whole) == dict.fromkeys(makers(whole), 50_000), "the planted bug: without replay all are read"


def test_a_replay_without_a_fix_publishes_nothing_new(storage):
    before, _ = indexed(storage, LARGE)
    again, reused = indexed(storage, LARGE, replay=True)
    assert reused
    assert again.manifest_key == before.manifest_key


def test_an_index_that_lacks_todays_columns_is_read_again(storage, monkeypatch):
    indexed(storage, LARGE)
    monkeypatch.setattr(raw_crawl, "CODE_VERSION", raw_crawl.CODE_VERSION + 1)
    monkeypatch.setattr(raw_crawl, "COLUMNS_SINCE", raw_crawl.CODE_VERSION)
    after, _ = indexed(storage, LARGE, replay=True)
    assert after.facts["shards_read_again"] == ["a/0.tar", "a/1.tar", "b/0.tar"]


def failed(storage: Storage, artifact: Artifact) -> dict[str, str]:
    results = checks.conservation(storage, artifact)
    return {str(result.check_name): str(result.metadata["problems"].value) for result in results if not result.passed}


def planted(storage: Storage, artifact: Artifact, name: str, change) -> Artifact:
    """The same batch, with the rows of one shard's table changed after its counts were taken."""
    rows = parquet.read(artifact.fetch("shards.parquet")).to_pylist()
    table = change(parquet.read(storage.store.fetch(rows[1][name])))
    path = storage.store.path(f"planted/{name}.parquet")
    rows[1][name] = f"planted/{name}.parquet"
    parquet.write(table, path)
    shards = parquet.write(parquet.from_rows(rows, raw_crawl.tables.BATCH_SHARDS), path.with_name("shards.parquet"))
    return artifacts.publish(
        storage.store, raw_crawl.KIND, f"planted-{name}", {"shards.parquet": shards}, code_version=0,
        inputs=[Input("x", "y", "z")], config={}, facts=artifact.facts, partition=artifact.partition,
    )  # fmt: skip


def test_the_checks_hold_for_what_was_published_and_see_each_lost_row(storage):
    artifact, _ = indexed(storage, SMALL)
    assert failed(storage, artifact) == {}
    lost_pair = planted(storage, artifact, "pairs_key", lambda table: table.slice(1))
    assert list(failed(storage, lost_pair)) == [checks.CAPTIONS]
    assert "3 captions are not 1 pairs + 1 quarantined" in failed(storage, lost_pair)[checks.CAPTIONS]

    def without(unit: str):
        return lambda table: table.filter([value != unit for value in table["unit"].to_pylist()])

    lost_member = planted(storage, artifact, "quarantine_key", without("member"))
    assert list(failed(storage, lost_member)) == [checks.MEMBERS]


def test_the_job_replays_a_batch_and_reports_what_it_recovered(storage, settings):
    from compalign_dagster.definitions import build_defs
    from tests.support.pipeline import metadata_of

    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(str(CRAWL_BATCHES.name), ["batch-00001"])
    for job, pixels in (("index_batch", 5000), ("replay_quarantine", 50_000)):
        defs = build_defs(settings=settings.model_copy(update={"image_pixels": pixels}))
        result = defs.resolve_job_def(job).execute_in_process(instance=instance, partition_key="batch-00001")
        assert result.success
        assert all(check.passed for check in result.get_asset_check_evaluations())
    assert "image_too_large: 1 recovered, 0 remain" in metadata_of(result, "raw_crawl")["quarantine replayed"]
    assert makers(latest.require(storage.store, raw_crawl.KIND, "batch-00001"))["a/0.tar"] == 5000
