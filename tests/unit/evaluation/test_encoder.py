import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.evaluation.encoder import (
    SHIFT_PX,
    DualEncoder,
    FeatureTower,
    PixelTower,
    Vocabulary,
    shifted,
)


def test_terms_are_words_and_short_phrases_that_occur_twice():
    words = Vocabulary(["a red circle", "a red square", "a blue bird"])
    assert set(words.index) == {"a", "red", "a red"}
    assert words.encode(["red a", "unheard of"]).tolist()[1] == [0] * 96
    assert set(words.encode(["a red"])[0]) == {0, *words.index.values()}


@given(st.lists(st.text(max_size=300), max_size=4))
def test_any_text_can_be_encoded(captions):
    words = Vocabulary(captions)
    encoded = words.encode(captions)
    assert encoded.shape == (len(captions), 96)
    assert encoded.max(initial=0) < len(words)


def test_word_order_makes_a_difference():
    captions = ["a circle left of a square", "a square left of a circle"] * 2
    one, other = Vocabulary(captions).encode(captions[:2])
    assert sorted(one) != sorted(other)


def test_a_shift_moves_the_picture_and_repeats_its_edge():
    pixels = torch.arange(16 * 16).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert shifted(pixels, SHIFT_PX, SHIFT_PX).equal(pixels)
    moved = shifted(pixels, SHIFT_PX + 2, SHIFT_PX)
    assert moved[:, :14].equal(pixels[:, 2:])
    assert moved[:, 14].equal(pixels[:, 15])


def test_a_caption_does_not_change_with_its_neighbours():
    torch.manual_seed(0)
    network = DualEncoder(FeatureTower(6), FeatureTower(5))
    images, texts = torch.randn(40, 6), torch.randn(30, 5)
    whole = network.similarity(images, texts, batch=7)
    assert whole.shape == (40, 30)
    np.testing.assert_allclose(network.similarity(images[3:4], texts[:2]), whole[3:4, :2], atol=1e-6)
    assert np.abs(whole).max() <= 1 + 1e-6


def test_the_loss_falls_when_own_pairs_stand_out():
    network = DualEncoder(torch.nn.Identity(), torch.nn.Identity())
    codes = torch.eye(8)
    assert network.loss(codes, codes) < network.loss(codes, codes.flip(0))


def test_places_in_the_picture_are_kept():
    tower = PixelTower(32).eval()
    left, right = torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    left[:, 12:20, 2:10], right[:, 12:20, 22:30] = 255, 255
    assert (tower(left) - tower(right)).abs().max() > 1e-3
