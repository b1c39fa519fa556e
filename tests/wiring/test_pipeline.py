"""The whole graph on a small sample, in order; later tests build on earlier materialisations."""

import pytest

from compalign_dagster import decisions, latest, parquet
from compalign_dagster.crawl.batches import read_log
from compalign_dagster.selection import current
from tests.support.pipeline import BATCH, Pipeline, kept_pairs, metadata_of, small_pipeline

pytestmark = pytest.mark.slow


def test_a_model_that_learned_too_little_is_refused_with_its_figures(settings):
    pipeline = small_pipeline(settings, pairs=40, judged=60)
    for job, partition in (("land_batch", None), ("index_batch", BATCH), ("learn_reward", None)):
        pipeline.must(job, partition)
    result = pipeline.run("promote_model")
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "95 % interval" in failure.error.to_string()
    assert decisions.current(pipeline.store, "promoted_model") is None


@pytest.fixture(scope="module")
def filtered(learned: Pipeline) -> Pipeline:
    learned.learn()
    learned.score_and_filter()
    return learned


def test_every_landed_caption_is_kept_dropped_or_quarantined(filtered):
    crawl = latest.require(filtered.store, "raw_crawl", BATCH).facts
    dataset = latest.require(filtered.store, "filtered_dataset").facts
    assert crawl["quarantined_captions"] > 0, "the sample brings hostile input"
    assert crawl["captions"] == (
        crawl["quarantined_captions"] + dataset["quarantined"] + dataset["kept"] + dataset["dropped"]
    )


def test_exactly_the_policys_share_is_kept(filtered):
    facts = latest.require(filtered.store, "filtered_dataset").facts
    assert facts["kept"] == int(facts["scored"] * 0.3 + 0.5)


def test_asking_again_recomputes_nothing_and_keeps_the_data_version(filtered):
    before = latest.require(filtered.store, "filtered_dataset")
    result = filtered.score_and_filter()
    assert metadata_of(result, "filtered_dataset")["reused"] is True
    assert latest.require(filtered.store, "filtered_dataset").data_version == before.data_version
    assert not read_log(filtered.store)[1:], "sealing again finds nothing new"


def test_a_trial_leaves_current_alone_until_it_is_adopted(filtered):
    before = current.read(filtered.store)
    trial = filtered.run("refilter", keep_fraction="0.1")
    assert trial.success
    assert metadata_of(trial, "filtered_dataset")["trial"] is True
    assert current.read(filtered.store).manifest_key == before.manifest_key
    adopted = filtered.run("refilter", keep_fraction="0.1", adopt=True)
    assert adopted.success
    assert current.read(filtered.store).facts["kept"] < before.facts["kept"]
    assert decisions.current(filtered.store, "selection_policy").version == 2


def test_a_keep_fraction_of_one_and_a_half_stops_the_run_with_the_reason(filtered):
    result = filtered.run("refilter", keep_fraction="1.5")
    assert not result.success
    messages = " ".join(
        str(event.step_failure_data.error.to_string()) for event in result.all_events if event.is_step_failure
    )
    assert "1.5" in messages
    assert "from 0 to 1" in messages


def test_kept_images_are_read_from_the_original_tars_and_reshard_to_the_same_bytes(filtered, tmp_path):
    import hashlib
    import tarfile

    result = filtered.run("refilter", reshard=True)
    assert result.success
    dataset = latest.require(filtered.store, "filtered_dataset")
    kept = kept_pairs(dataset)
    digests = {}
    for shard in {row["shard"] for row in kept}:
        index = [
            s
            for s in parquet.read(
                latest.require(filtered.store, "raw_crawl", BATCH).fetch("shards.parquet")
            ).to_pylist()
            if s["shard"] == shard
        ]
        for row in parquet.read(filtered.store.fetch(index[0]["pairs_key"])).to_pylist():
            digests[row["pair_id"], row["shard"], row["key"]] = row["image_sha256"]
    wanted = {digests[row["pair_id"], row["shard"], row["key"]] for row in kept}
    found = set()
    for name in dataset.names():
        if name.startswith("shards/"):
            with tarfile.open(dataset.fetch(name)) as tar:
                for member in tar:
                    if not member.name.endswith(".json"):
                        found.add(hashlib.sha256(tar.extractfile(member).read()).hexdigest())
    assert found == wanted


def test_a_second_batch_scores_only_what_is_new_and_reaches_the_dataset(filtered):
    from compalign_dagster.samples.crawl import write_sample_crawl

    extra = filtered.settings.home / "extra"
    write_sample_crawl(extra, seed=11, pairs=40, judged_images=5, evaluation_pairs=4, shard_pairs=40)
    (source,) = (extra / "landing" / "sample").glob("*.tar")
    source.rename(filtered.settings.home / "landing" / "sample" / "90000.tar")
    filtered.must("land_batch")
    batches = [batch.key for batch in read_log(filtered.store)]
    assert batches == ["batch-00001", "batch-00002"]
    before = latest.require(filtered.store, "filtered_dataset").facts["pairs"]
    filtered.score_and_filter("batch-00002")
    after = latest.require(filtered.store, "filtered_dataset").facts["pairs"]
    added = latest.require(filtered.store, "raw_crawl", "batch-00002").facts["pairs"]
    assert after == before + added


def test_a_removed_shard_leaves_the_dataset_and_the_run_history_stays_green(filtered):
    before = latest.require(filtered.store, "filtered_dataset").facts["pairs"]
    gone = latest.require(filtered.store, "raw_crawl", "batch-00002").facts["pairs"]
    (filtered.settings.home / "landing" / "sample" / "90000.tar").unlink()
    filtered.must("land_batch")
    assert read_log(filtered.store)[-1].removed == ("sample/90000.tar",)
    filtered.score_and_filter("batch-00003")
    dataset = latest.require(filtered.store, "filtered_dataset")
    assert dataset.facts["pairs"] == before - gone
    assert "sample/90000.tar" not in {row["shard"] for row in kept_pairs(dataset)}


def test_the_report_compares_the_reward_with_people_and_the_training_sets(filtered):
    result = filtered.must("evaluate")
    report = latest.require(filtered.store, "eval_report")
    assert report.has_view("page.html")
    refused = [check.check_name for check in result.get_asset_check_evaluations() if not check.passed]
    assert not refused


def test_a_shard_written_over_before_it_is_indexed_is_left_to_the_next_batch(settings):
    pipeline = small_pipeline(settings, pairs=80, judged=4)
    pipeline.must("land_batch")
    shards = sorted((settings.home / "landing").rglob("*.tar"))
    assert len(shards) > 1
    shards[0].write_bytes(shards[1].read_bytes())
    pipeline.must("index_batch", BATCH)
    assert latest.require(pipeline.store, "raw_crawl", BATCH).facts["shards"] == len(shards) - 1
    pipeline.must("land_batch")
    pipeline.must("index_batch", "batch-00002")
    assert latest.require(pipeline.store, "raw_crawl", "batch-00002").facts["shards"] == 1


def test_a_landing_killed_between_the_log_and_dagster_is_registered_by_the_next(settings):
    from compalign_dagster.crawl.batches import seal
    from compalign_dagster.store import LocalStore

    pipeline = small_pipeline(settings, pairs=40, judged=4)
    seal(pipeline.store, LocalStore(settings.home / "landing"), max_shards=100)
    pipeline.must("land_batch")
    assert pipeline.instance.get_dynamic_partitions("crawl_batch") == [BATCH]
