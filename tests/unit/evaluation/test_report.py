import json
from dataclasses import replace

import pytest

from compalign_dagster import parquet
from compalign_dagster.annotation.tables import CAPTIONS, COMPARISONS, IMAGES
from compalign_dagster.crawl.index import concat, index_shard
from compalign_dagster.crawl.shards import find_shards
from compalign_dagster.evaluation.downstream import DownstreamConfig
from compalign_dagster.evaluation.report import Filtered, Judged, crawl_table, evaluate
from compalign_dagster.samples.crawl import write_sample_crawl
from compalign_dagster.selection import blocks
from tests.support.small_version import small_store

CONFIG = DownstreamConfig(steps=3, batch=8, seeds=(0, 1), image_px=32)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("small"), batches=1, pairs=30)


@pytest.fixture(scope="module")
def crawl(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("crawl")
    write_sample_crawl(out, seed=3, pairs=4, judged_images=4, evaluation_pairs=12, shard_pairs=30)
    shards = find_shards([str(small.home / "landing")])
    filtered = Filtered(small.filter(keep_fraction="0.5"), {shard.name: shard for shard in shards})
    return filtered, find_shards([str(out / "evaluation")])


def judged(image_ids, split="test"):
    images = [
        {"image_id": image_id, "shard": "s", "key": "k", "image_offset": 0, "image_length": 1, "split": split}
        for image_id in image_ids
    ]
    captions = [
        {"image_id": image_id, "caption_id": name, "caption": name, "caption_source": "human"}
        for image_id in image_ids
        for name in ("a", "bb")
    ]
    comparisons = [
        {"image_id": image_id, "labeler": "l", "better": "a", "worse": "bb", "tie": False} for image_id in image_ids
    ]
    reward = {(row["image_id"], row["caption_id"]): -float(len(row["caption"])) for row in captions}
    return Judged(
        parquet.from_rows(images, IMAGES),
        parquet.from_rows(captions, CAPTIONS),
        parquet.from_rows(comparisons, COMPARISONS),
        {"reward": reward},
    )


def test_the_report_is_json_with_counts_beside_every_figure(crawl):
    filtered, evaluation = crawl
    report = evaluate(filtered, judged(["j1", "j2"]), evaluation, CONFIG)
    json.dumps(report, allow_nan=False)
    assert report["agreement"]["reward"]["preference_accuracy"]["n"] == 2
    assert report["judged"] == {"test_images": 2, "comparisons": 2, "ties": 0, "undecodable_images": 0}
    arms = report["downstream"]["arms"]
    assert list(arms) == ["everything", "random", "cosine", "reward"]
    assert arms["reward"]["pairs"] == arms["random"]["pairs"] == arms["cosine"]["pairs"]
    assert arms["reward"]["text_to_image"]["r10"]["n"] == report["downstream"]["test_captions"]
    assert set(report["downstream"]["minus"]) == {"everything", "random", "cosine"}
    assert report["leakage"]["leaked_images"] == {"kept": 0, "crawl": 0, "judged": 0}


def test_evaluation_images_that_were_judged_are_left_out_and_counted(crawl):
    filtered, evaluation = crawl
    pairs = concat(index_shard(shard) for shard in evaluation).pairs
    leaked = pairs["image_sha256"][0].as_py()
    report = evaluate(filtered, judged([leaked]), evaluation, CONFIG)
    assert report["leakage"]["leaked_images"]["judged"] == 1
    assert report["leakage"]["removed_pairs"] >= 1
    left = report["leakage"]["evaluation_pairs"] - report["leakage"]["removed_pairs"]
    assert report["downstream"]["test_captions"] == left
    assert any("left out" in note for note in report["notes"])


@pytest.mark.parametrize("moved", [True, False])
def test_baselines_of_a_network_that_judgements_moved_are_reported_as_such(crawl, moved):
    filtered, evaluation = crawl
    notes = evaluate(filtered, replace(judged(["j1"]), moved=moved), evaluation, CONFIG)["notes"]
    assert any("after judgements moved it" in note for note in notes) == moved


def test_only_judgements_of_test_images_count(crawl):
    filtered, evaluation = crawl
    report = evaluate(filtered, judged(["j1"], split="train"), evaluation, CONFIG)
    assert report["judged"]["comparisons"] == 0
    assert report["agreement"]["reward"]["preference_accuracy"]["n"] == 0


def test_pairs_on_the_block_list_are_in_no_training_set(small):
    version = small.filter(keep_fraction="0.5", move=False)
    table = crawl_table(version)
    assert table.height == version.facts["pairs"] - version.facts["quarantined"]
    assert table["kept"].sum() == version.facts["kept"]
    assert table["cosine"].null_count() == table["caption"].null_count() == table["image_sha256"].null_count() == 0
    gone = table["pair_id"][0]
    blocks.add(small.store, [blocks.entry("pair_id", gone, request="r1")])
    after = small.filter(keep_fraction="0.5", move=False)
    assert after.facts["dropped_by_reason"]["takedown"] == table.filter(pair_id=gone).height
    assert gone not in crawl_table(after)["pair_id"]
