import math

import numpy as np
import pytest
import torch

from compalign_dagster.reward.batches import epochs, flatten
from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.losses import LN2, anchor_loss, preference_loss, spread, stuck


def image(name, captions, better=(0,), worse=(1,), top=(0,)):
    return JudgedImage(name, ("s", 0, 1), tuple(captions), tuple(better), tuple(worse), 0, tuple(top))


BATCH = [image("i", ["a red one", "bad"]), image("j", ["a blue one", "bad"]), image("k", ["a green one", "bad"])]


def test_rows_are_own_captions_then_the_neighbours_best():
    batch = flatten(BATCH, 2)
    assert batch.captions[:6] == ["a red one", "bad", "a blue one", "bad", "a green one", "bad"]
    assert batch.image_index[:6].tolist() == [0, 0, 1, 1, 2, 2]
    wrong = {(int(batch.image_index[row]), batch.captions[row]) for row in batch.mismatched}
    assert wrong == {
        *((0, "a blue one"), (0, "a green one"), (1, "a green one")),
        *((1, "a red one"), (2, "a red one"), (2, "a blue one")),
    }


def test_a_neighbours_caption_that_the_image_shares_is_no_mismatch():
    batch = flatten([image("i", ["same", "x"]), image("j", ["same", "y"])], 1)
    assert len(batch.mismatched) == 0
    assert anchor_loss(torch.zeros(4), batch) == 0


def test_an_image_with_many_comparisons_weighs_no_more_than_one_with_few():
    many = image("i", ["a", "b", "c"], (0, 0, 1), (1, 2, 2))
    batch = flatten([many, image("j", ["d", "e"])], 1)
    assert batch.weight[:3].sum() == pytest.approx(0.5)
    assert batch.weight[3:].sum() == pytest.approx(0.5)


def test_equal_rewards_cost_ln_2_and_the_right_order_costs_less():
    batch = flatten(BATCH, 1)
    flat = torch.zeros(len(batch.captions))
    assert float(preference_loss(flat, batch)) == pytest.approx(LN2)
    assert stuck(float(preference_loss(flat, batch)))
    right = flat.clone()
    right[batch.better] = 3.0
    assert float(preference_loss(right, batch)) == pytest.approx(math.log1p(math.exp(-3)))
    assert not stuck(float(preference_loss(right, batch)))


def test_an_offset_for_each_image_is_free_within_images_and_costs_across_them():
    batch = flatten(BATCH, 2)
    rewards = torch.zeros(len(batch.captions))
    rewards[batch.better] = 2.0
    rewards[batch.mismatched] = -2.0
    shifted = rewards + 10.0 * batch.image_index.float()
    assert float(preference_loss(shifted, batch)) == pytest.approx(float(preference_loss(rewards, batch)))
    assert float(anchor_loss(shifted, batch)) > float(anchor_loss(rewards, batch)) + 1


def test_the_pointwise_anchor_pins_zero():
    batch = flatten(BATCH, 2)
    rewards = torch.zeros(len(batch.captions))
    rewards[batch.top] = 2.0
    rewards[batch.mismatched] = -2.0
    assert float(anchor_loss(rewards + 5, batch)) > float(anchor_loss(rewards, batch)) + 0.5


def test_spread_of_a_constant_is_nothing():
    assert spread(torch.full((5,), 3.0)) == 0.0


def test_every_index_comes_once_an_epoch_and_never_twice_in_a_batch():
    order = epochs(10, 4, np.random.default_rng(0))
    batches = [next(order) for _ in range(200)]
    assert all(len(set(batch)) == len(batch) for batch in batches)
    counts = np.bincount([index for batch in batches for index in batch])
    assert len(counts) == 10
    assert counts.min() > 0.8 * counts.max()
