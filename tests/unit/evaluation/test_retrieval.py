import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.evaluation.retrieval import both_ways, difference, ranks, recall, right_answers


def test_the_rank_is_the_number_of_wrong_answers_before_the_first_right_one():
    similarity = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.1, 0.0]])
    right = np.array([[True, False, False], [False, False, True], [False, True, True]])
    assert ranks(similarity, right).tolist() == [0, 2, 1]


def test_a_constant_model_finds_nothing():
    right = np.eye(20, dtype=bool)
    found = both_ways(np.zeros((20, 20)), right)
    assert all((rank == 19).all() for rank in found.values())


def test_captions_that_read_the_same_are_all_right():
    captions = ["A red  circle", "a red circle", "a blue square"]
    right = right_answers(captions, np.array([0, 1, 2]), 3)
    assert right.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_an_image_has_as_many_right_captions_as_it_has_captions():
    right = right_answers(list("abcd"), np.array([0, 0, 1, 1]), 2)
    assert right.tolist() == [[True, True, False, False], [False, False, True, True]]
    found = both_ways(np.array([[0.1, 0.9, 0.5, 0.2], [0.0, 0.3, 0.6, 0.1]]), right)
    assert found["image_to_text"].tolist() == [0, 0]
    assert found["text_to_image"].tolist() == [0, 0, 0, 1]


@given(st.integers(0, 10_000))
def test_the_order_of_the_test_set_does_not_matter(seed):
    generator = np.random.default_rng(seed)
    similarity = generator.normal(size=(6, 9))
    image_of = np.concatenate([np.arange(6), generator.integers(0, 6, 3)])
    right = right_answers([str(at) for at in range(9)], image_of, 6)
    order = generator.permutation(9)
    moved = right_answers([str(at) for at in range(9)], image_of[order], 6)
    assert (ranks(similarity[:, order], moved) == ranks(similarity, right)).all()


def test_recall_is_the_share_of_hits_with_its_count_and_interval():
    found = {"image_to_text": np.array([[0, 3, 0, 20]] * 3), "text_to_image": np.zeros((3, 8), int)}
    figures = recall(found, np.repeat(np.arange(4), 2), seed=1)
    first = figures["image_to_text"]
    assert (first["r1"]["value"], first["r5"]["value"], first["r10"]["value"]) == (0.5, 0.75, 0.75)
    assert first["r1"]["n"] == 4
    assert 0 <= first["r1"]["low"] < 0.5 < first["r1"]["high"] <= 1
    assert figures["text_to_image"]["r1"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 8, "seed_std": 0.0}


def test_one_seed_has_no_deviation_between_seeds():
    figures = recall(
        {"image_to_text": np.zeros((1, 4), int), "text_to_image": np.zeros((1, 4), int)}, np.arange(4), seed=1
    )
    assert figures["image_to_text"]["r1"]["seed_std"] is None


def test_a_difference_is_paired_by_image():
    generator = np.random.default_rng(0)
    hard = generator.random(400) < 0.5
    one = np.stack([np.where(hard, 9, 0)] * 2)
    other = one.copy()
    other[:, :40] = 9  # a tenth of the images is found by one arm less often
    ways = ("image_to_text", "text_to_image")
    found = difference(dict.fromkeys(ways, one), dict.fromkeys(ways, other), np.arange(400), seed=3)
    gain = found["image_to_text"]["r1"]
    assert gain["value"] == pytest.approx((~hard[:40]).sum() / 400)
    assert gain["low"] > 0  # unpaired intervals of 0.45 and 0.50 with n = 400 overlap
    same = difference(dict.fromkeys(ways, one), dict.fromkeys(ways, one), np.arange(400), seed=3)
    assert (same["image_to_text"]["r1"]["low"], same["image_to_text"]["r1"]["high"]) == (0, 0)


def test_training_seeds_widen_the_interval():
    ways = ("image_to_text", "text_to_image")
    steady = np.tile(np.arange(100) % 2 * 9, (4, 1))
    shaky = np.stack([np.full(100, 9), np.zeros(100, int)] * 2)
    widths = []
    for ranks_ in (steady, shaky):
        figure = recall(dict.fromkeys(ways, ranks_), np.arange(100), seed=0)["image_to_text"]["r1"]
        assert figure["value"] == 0.5
        widths.append(figure["high"] - figure["low"])
    assert widths[1] > 2 * widths[0]
