from dataclasses import replace

import pyarrow as pa
import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.evaluation import crossval
from compalign_dagster.evaluation.crossval import cross_validate, fold_tables, out_of_fold
from compalign_dagster.reward.blip import TinyBlipReward
from tests.support.tiny_reward import tiny_config, tiny_data

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"), judged=24, rated=True)


def test_every_image_is_tested_once_and_never_learned_from_in_its_fold(data):
    splits = [dict(zip(*(table[name].to_pylist() for name in ("image_id", "split")), strict=True))
              for table in fold_tables(data.images, 5, seed=1)]  # fmt: skip
    for image in data.images["image_id"].to_pylist():
        assert [table[image] for table in splits].count("test") == 1
    sizes = [list(table.values()).count("test") for table in splits]
    assert max(sizes) - min(sizes) <= 1
    assert all(0 < list(table.values()).count("validation") < 6 for table in splits)
    again = fold_tables(data.images.take(list(range(23, -1, -1))), 5, seed=1)
    assert [
        dict(zip(*(table[name].to_pylist() for name in ("image_id", "split")), strict=True)) for table in again
    ] == splits


def test_fewer_images_than_folds_are_refused(data):
    with pytest.raises(InputError, match="24 judged images"):
        fold_tables(data.images, 25, seed=1)


def test_the_models_of_a_fold_never_see_its_test_images(data, monkeypatch):
    seen = []
    learn = crossval.train

    def watched(config, part, **options):
        rows = part.images.select(["image_id", "split"]).to_pylist()
        seen.append({row["image_id"] for row in rows if row["split"] != "test"})
        return learn(config, part, **options)

    monkeypatch.setattr(crossval, "train", watched)
    found = out_of_fold(tiny_config(), data, folds=3)
    assert len(seen) == 3
    assert sorted(found.held.images) == sorted(data.images["image_id"].to_pylist())
    start = 0
    for learned, fold in zip(seen, found.folds, strict=True):
        tested = found.held.images[start : start + fold["test_images"]]
        start += fold["test_images"]
        assert not learned & set(tested)


def test_the_evidence_is_pooled_over_all_folds_and_repeats(data):
    found = cross_validate(tiny_config(), data, folds=2)
    assert found["images"] == 24
    assert found["scorers"]["reward"]["preference_accuracy"]["n"] == 24 * 3
    assert found["calibration"]["ece"]["n"] == data.ranks.num_rows
    assert [fold["test_images"] for fold in found["folds"]] == [12, 12]
    again = cross_validate(tiny_config(), data, folds=2)
    assert again["scorers"] == found["scorers"]


def test_further_judgements_are_scored_and_not_learned_from(data):
    half = data.images.slice(0, 12)
    found = out_of_fold(tiny_config(), replace(data, images=half), folds=2, scored=data)
    assert len(found.held.images) == 24
    assert len(found.probabilities) == len(found.held.rows)


def test_no_fold_learns_from_crawl_pairs_of_an_image_that_it_scores(data, monkeypatch):
    """Nor from those of images that are only scored: their judgements are not in the training data."""
    given = []

    def learn(self, images, pairs, *, progress):
        given.append({place for place, _ in pairs})

    monkeypatch.setattr(TinyBlipReward, "reads_crawl", True)
    monkeypatch.setattr(TinyBlipReward, "learn_crawl", learn)
    names = ("shard", "image_offset", "image_length")
    pair = data.crawl.slice(0, 1).to_pylist()[0]
    rows = [
        {**pair, **{name: row[name] for name in names}, "image_sha256": row["image_id"]}
        for row in data.images.to_pylist()
    ]
    crawl = pa.Table.from_pylist(rows, data.crawl.schema)
    config = tiny_config(pretrain_steps=0, joint_weight=0.0)
    out_of_fold(config, replace(data, images=data.images.slice(0, 12), crawl=crawl), folds=2, scored=data)
    assert len(given) == 2
    for learned, images in zip(given, fold_tables(data.images, 2, seed=config.seed), strict=True):
        assert learned
        scored = [row for row in images.to_pylist() if row["split"] == "test"]
        assert not learned & {tuple(row[name] for name in names) for row in scored}
