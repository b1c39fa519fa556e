"""Pairs of a version made again from the landed tars, with a real (small, untrained) model."""

from collections.abc import Callable

import polars as pl
import pyarrow as pa
import pytest

from compalign_dagster import artifacts
from compalign_dagster.lineage import chain, recompute
from compalign_dagster.lineage.verify import Report, Wanted, verify_version
from tests.support.scoring import prepare
from tests.support.small_version import SmallStore
from tests.support.tampering import Tampered, edited_columns, forge, parquet_bytes, table_of

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SmallStore:
    from assets.score_ledger import publish_ledger
    from assets.scored_shards import score_batch
    from resources.accelerator import Accelerator

    made = SmallStore(prepare(tmp_path_factory.mktemp("recompute"), shards=3, pairs=8, batch_shards=2), 2, 8, 1)
    for batch in made.batches:
        score_batch(made.storage, Accelerator.from_settings(made.settings), batch)
    publish_ledger(made.store)
    made.filter(keep_fraction="0.4")
    return made


def verified(small: SmallStore, share: float = 1.0, seed: str = "") -> Report:
    wanted = Wanted(landing=small.landing, recompute=share, seed=seed, device="cpu")
    return verify_version(small.store, small.filter(keep_fraction="0.4").artifact.manifest_key, wanted)


def forging(small: SmallStore, kind: str, name: str, change: Callable[[pa.Table], pa.Table]) -> list[str]:
    """What recomputing says after the first artifact of a kind was changed with all that hangs on it."""
    version = small.filter(keep_fraction="0.4").artifact
    behind = chain.check(version).artifacts
    made = next(artifact for artifact in behind.values() if artifact.kind == kind)
    with Tampered(small.store) as tampered:
        forge(tampered, behind, made, {name: parquet_bytes(change(table_of(made, name)))})
        wanted = Wanted(landing=small.landing, recompute=1, device="cpu")
        report = verify_version(small.store, version.manifest_key, wanted)
    assert report.recomputed is not None
    return [str(fault) for fault in report.recomputed.faults]


def flipped(column: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: dict(edited_columns(table, column))["flip"]


def test_every_pair_of_a_clean_version_is_made_again_without_a_difference(small):
    report = verified(small)
    assert report.faults == []
    found = report.recomputed
    assert found.pairs == found.of == found.scored == report.redone.rows > 20
    assert found.widest < recompute.TOLERANCE["fp32"]
    assert "all of them were looked at" in "\n".join(found.lines())


def test_a_sample_gives_a_bound_and_another_seed_another_sample(small):
    report = verified(small, 0.3)
    assert report.faults == []
    text = "\n".join(report.lines())
    assert f"0 of {report.recomputed.pairs} pairs wrong, so at most" in text
    assert "at 95 %" in text
    assert verified(small, 0.3, "of the auditor").faults == []


@pytest.mark.parametrize("column", ["caption", "pair_id", "image_sha256", "width", "url", "image_phash"])
def test_an_index_that_is_not_the_landed_tars_is_found_however_consistent(small, column):
    faults = forging(small, "raw_crawl_shards", "pairs.parquet", flipped(column))
    assert any("/pairs.parquet" in fault and f" {column}: " in fault for fault in faults), faults


@pytest.mark.parametrize("column", ["reward", "cosine", "itm"])
def test_a_score_that_the_model_does_not_give_is_found_however_consistent(small, column):
    faults = forging(small, "scored_shards_shards", "scores.parquet", flipped(column))
    assert any("/scores.parquet" in fault and f" {column}: " in fault for fault in faults), faults


def test_a_difference_within_the_tolerance_is_none_and_one_beyond_it_is(small):
    def moved(by: float) -> Callable[[pa.Table], pa.Table]:
        def change(table: pa.Table) -> pa.Table:
            rewards = [value + by for value in table["reward"].to_pylist()]
            at = table.schema.get_field_index("reward")
            return table.set_column(at, table.schema.field(at), pa.array(rewards, pa.float32()))

        return change

    near = forging(small, "scored_shards_shards", "scores.parquet", moved(5e-5))
    far = forging(small, "scored_shards_shards", "scores.parquet", moved(5e-4))
    assert not any("/scores.parquet" in fault for fault in near)
    assert any("/scores.parquet" in fault for fault in far)


def test_the_planted_bug_of_believing_every_reward_turns_this_red(small, monkeypatch):
    monkeypatch.setattr(recompute, "_near", lambda one, other, tolerance: True)
    faults = forging(small, "scored_shards_shards", "scores.parquet", flipped("reward"))
    assert not any("/scores.parquet" in fault for fault in faults)


def test_other_landed_bytes_are_named_and_a_shard_of_another_size_is_left_out(small):
    path = small.landing.path("web/00000.tar")
    before = path.read_bytes()
    try:
        path.write_bytes(before.replace(b"a red", b"a tan").replace(b"a green", b"a brown"))
        assert before != path.read_bytes()
        report = verified(small)
        assert any("web/00000.tar" in str(fault) for fault in report.faults)
        assert report.recomputed.wrong
        path.write_bytes(before + bytes(10_240))
        report = verified(small)
        assert report.recomputed.passed_over == ["web/00000.tar"]
        version = small.filter(keep_fraction="0.4")
        there = pl.concat([version.decided(batch) for batch in version.batches()]).filter(
            pl.col("shard") != "web/00000.tar"
        )
        assert report.recomputed.of == report.recomputed.pairs == there.height
        assert "other bytes lie there by now" in "\n".join(report.recomputed.lines())
    finally:
        path.write_bytes(before)


def test_a_model_that_somebody_altered_is_not_loaded(small, monkeypatch):
    version = small.filter(keep_fraction="0.4").artifact
    model = next(made for made in chain.check(version).artifacts.values() if made.kind == "reward_model")
    monkeypatch.setattr(artifacts.Artifact, "checkout", None)  # whatever would be loaded is not even copied
    name = next(name for name in model.names() if name.endswith(".safetensors"))
    with Tampered(small.store) as tampered:
        key = model.file_key(name)
        tampered.write(key, small.store.read(key)[:-1] + b"!")
        report = verified(small)
    assert any("others, as the faults say" in str(fault) for fault in report.faults)


def test_a_version_without_its_model_says_so(small):
    version = small.filter(keep_fraction="0.4").artifact
    model = next(made for made in chain.check(version).artifacts.values() if made.kind == "reward_model")
    with Tampered(small.store) as tampered:
        tampered.delete(model.manifest_key)
        report = verified(small)
    assert any("reward model" in str(fault) for fault in report.faults)
