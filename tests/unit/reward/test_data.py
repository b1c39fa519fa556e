import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.reward.data import judged_images, texts
from compalign_dagster.reward.joint import contrastive, hard_negatives, same
from compalign_dagster.reward.loading import ImageLoader
from compalign_dagster.reward.nearmiss import Substitutes
from compalign_dagster.reward.pretraining import crawl_pairs
from compalign_dagster.reward.tokenizer import SPECIAL, train_tokenizer
from tests.support.tiny_reward import tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("rated"), rated=True)


def test_ties_are_dropped_and_counted(data):
    for image in judged_images(data, "train"):
        assert image.ties == 1
        assert len(image.better) == 3
        assert [image.captions[row] for row in image.top] == [image.captions[0]]


def with_rows(data, name, change):
    """The data with one table's rows changed."""
    table = getattr(data, name)
    rows = [change(dict(row)) for row in table.to_pylist()]
    return type(data)(**{**vars(data), name: table.from_pylist([row for row in rows if row is not None], table.schema)})


def test_order_of_rows_does_not_matter(data, rated):
    rng = np.random.default_rng(0)
    for one in (data, rated):
        mixed = {
            name: getattr(one, name).take(rng.permutation(len(getattr(one, name))))
            for name in ("images", "captions", "comparisons", "ranks")
        }
        other = type(one)(**{**vars(one), **mixed})
        assert judged_images(other, "train", {"m": 0.3}) == judged_images(one, "train", {"m": 0.3})


def test_captions_come_with_their_ids_and_sources(data):
    image = judged_images(data, "train")[0]
    assert image.caption_ids == ("a", "b", "c")
    assert image.caption_sources == ("human",) * 3
    assert not image.rated


def test_ratings_are_means_over_labelers_by_weight(rated):
    mixed = with_rows(rated, "ranks", lambda row: {**row, "accuracy": 3} if row["labeler"] == "m" else row)
    (plain, weighted) = (judged_images(mixed, "train", weights)[0] for weights in ({}, {"m": 0.5}))
    accuracy, completeness, vividness, context = plain.ratings[0]
    assert (accuracy, completeness, vividness) == (0.75, 1.0, 0.75)
    assert math.isnan(context)
    assert weighted.ratings[0][0] == pytest.approx((1.0 * 1 + 0.5 * 0.5) / 1.5)
    assert plain.trust == weighted.trust == (1.0,) * 3
    assert judged_images(mixed, "train", {"l": 0.5, "m": 0.25})[0].trust == (0.5,) * 3


def test_comparisons_carry_the_weight_of_their_labeler(data):
    def contradict(row):
        if row["labeler"] == "m":
            row |= {"better": "b", "worse": "a", "tie": False}
        return row

    image = judged_images(with_rows(data, "comparisons", contradict), "train", {"m": 1.5})[0]
    assert dict(zip(zip(image.better, image.worse, strict=True), image.weight, strict=True)) == {
        (0, 1): 1.0,
        (0, 2): 1.0,
        (1, 0): 1.5,
        (1, 2): 1.0,
    }
    assert image.top == (1,)  # 1.5 - 1 + 1 against 1 + 1 - 1.5
    assert judged_images(with_rows(data, "comparisons", contradict), "train", {"m": 0.5})[0].top == (0,)


def test_a_labeler_of_weight_0_does_not_exist(rated):
    def without(row):
        return None if row["labeler"] == "m" else row

    gone = with_rows(with_rows(rated, "comparisons", without), "ranks", without)
    for split in ("train", "validation"):
        assert judged_images(rated, split, {"m": 0.0}) == judged_images(gone, split)
        assert judged_images(rated, split) != judged_images(gone, split)


def test_a_tokenizer_sees_no_caption_outside_the_training_split(data):
    held = {text for split in ("validation", "test") for image in judged_images(data, split) for text in image.captions}
    marked = data.captions.set_column(
        2,
        data.captions.schema.field("caption"),
        pa.array(
            [
                "secret" if image_id in {image.image_id for image in judged_images(data, "test")} else text
                for image_id, text in zip(
                    data.captions["image_id"].to_pylist(), data.captions["caption"].to_pylist(), strict=True
                )
            ]
        ),
    )
    assert held
    assert "secret" not in set(texts(type(data)(**{**vars(data), "captions": marked})))


def test_pretraining_never_sees_a_judged_image_outside_the_training_split(data):
    test_id = judged_images(data, "test")[0].image_id
    digests = data.crawl["image_sha256"].to_pylist()
    digests[3] = test_id
    at = data.crawl.schema.get_field_index("image_sha256")
    crawl = data.crawl.set_column(at, data.crawl.schema.field(at), pa.array(digests))
    pairs, held_back = crawl_pairs(type(data)(**{**vars(data), "crawl": crawl}), limit=1000, seed=0)
    assert held_back == 1
    assert len(pairs) == len(digests) - 1


def test_a_large_crawl_is_drawn_from_by_seed(data):
    first, _ = crawl_pairs(data, limit=5, seed=1)
    assert len(first) == 5
    assert crawl_pairs(data, limit=5, seed=1)[0] == first
    assert crawl_pairs(data, limit=5, seed=2)[0] != first


def test_a_loader_keeps_no_more_than_its_budget_and_sets_bad_images_aside(data):
    places = [(row["shard"], row["image_offset"], row["image_length"]) for row in data.crawl.to_pylist()]
    prepared = torch.zeros(100, dtype=torch.uint8)
    loader = ImageLoader(data.shards, lambda image: prepared, cache_bytes=250)
    cut = (places[0][0], places[0][1], places[0][2] // 3)
    assert loader.usable([*places, cut]) == set(places)
    assert list(loader.rejected) == [cut]
    assert loader.rejected[cut].startswith("image_")
    assert len(loader._kept) == 2
    assert loader.batch(places).shape == (len(places), 100)


def test_captions_that_read_alike_are_no_negatives_of_each_other():
    alike = same(["A red  ball", "a red ball", "blue"])
    assert alike.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    drawn = {tuple(hard_negatives(torch.zeros(3, 3), alike).tolist()) for _ in range(50)}
    assert all(first == 2 and second == 2 for first, second, _ in drawn)
    assert {third for _, _, third in drawn} == {0, 1}


def test_a_batch_of_one_caption_has_no_negative_and_does_not_fail():
    alike = same(["x", "x"])
    assert hard_negatives(torch.zeros(2, 2), alike).tolist() == [0, 1]


def test_contrast_is_least_where_the_right_ones_meet():
    alike = same(["a", "b"])
    right, wrong = torch.eye(2) * 10, (1 - torch.eye(2)) * 10
    assert contrastive(right, alike) < 0.01
    assert contrastive(wrong, alike) > 5


def test_a_near_miss_leaves_everything_else_as_it_was():
    substitutes = Substitutes(["A big red ball, isn't it?", "a Big BLUE ball, isn't it?"] * 3)
    rng = np.random.default_rng(0)
    assert substitutes.near_miss("A  big Red ball,  isn't it?", rng) == "A  big Blue ball,  isn't it?"


def test_a_near_miss_changes_one_word_to_one_that_fits():
    captions = [f"a {size} {colour} ball" for size in ("big", "small") for colour in ("red", "blue") for _ in range(3)]
    substitutes = Substitutes(captions)
    rng = np.random.default_rng(0)
    found = {substitutes.near_miss("a big red ball", rng) for _ in range(50)}
    assert found == {"a big blue ball", "a small red ball"}
    assert substitutes.near_miss("click here", rng) is None


def test_a_share_of_near_misses_are_the_same_words_in_another_order():
    captions = [f"a {size} {colour} ball" for size in ("big", "small") for colour in ("red", "blue") for _ in range(3)]
    substitutes = Substitutes(captions, shuffled=0.3)
    rng = np.random.default_rng(0)
    found = [substitutes.near_miss("a big red ball", rng) for _ in range(1000)]
    mixed = [text for text in found if text not in ("a big blue ball", "a small red ball")]
    assert 250 < len(mixed) < 350
    assert all(sorted(text.split()) == ["a", "ball", "big", "red"] and text != "a big red ball" for text in mixed)
    assert Substitutes(captions, shuffled=1.0).near_miss("click here", rng) is None, "two words read well either way"


@given(st.lists(st.text(max_size=30), max_size=8), st.text(max_size=60))
def test_a_near_miss_is_never_the_caption_itself(captions, caption):
    substitutes = Substitutes(captions * 3, shuffled=0.5)
    miss = substitutes.near_miss(caption, np.random.default_rng(0))
    assert miss is None or miss != caption


def test_a_tokenizer_repeats_and_knows_the_special_tokens_first():
    captions = ["a red ball on a table", "a blue ball", "RED ball"] * 3
    first, second = (train_tokenizer(captions, vocabulary_size=60) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert [first.convert_ids_to_tokens(at) for at in range(5)] == list(SPECIAL)
    ids = first("Red ball")["input_ids"]
    assert first.convert_ids_to_tokens(ids) == ["[CLS]", "red", "ball", "[SEP]"]
