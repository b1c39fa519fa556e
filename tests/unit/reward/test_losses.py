import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compalign_dagster.reward.batches import flatten
from compalign_dagster.reward.losses import (
    LN2,
    anchor_loss,
    criteria_loss,
    hard_loss,
    preference_loss,
    rating_loss,
    shares,
    spread,
    stuck,
)
from tests.support.tiny_reward import NOT_RATED, judged_image


def image(name, captions, better=(0,), worse=(1,), top=(0,), **more):
    return judged_image(captions, image_id=name, better=better, worse=worse, top=top, **more)


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
    share = shares(batch.weight, batch.image_index[batch.better])
    assert share[:3].sum() == pytest.approx(0.5)
    assert share[3:].sum() == pytest.approx(0.5)


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


def test_a_best_caption_that_people_rated_low_is_no_anchor():
    bad = image("i", ["a red one", "bad"], ratings=[(0.25, 0.25, math.nan, math.nan), NOT_RATED])
    assert [flatten([bad, other], 1).top.tolist() for other in BATCH[1:]] == [[2], [2]]
    fair = image("i", ["a red one", "bad"], ratings=[(0.25, 0.75, math.nan, math.nan), NOT_RATED])
    assert flatten([fair, BATCH[1]], 1).top.tolist() == [0, 2]


def test_near_misses_follow_and_know_what_they_were_made_from():
    twins = {"a red one": "a red two", "a blue one": None, "a green one": "bad"}
    batch = flatten(BATCH, 1, twins.get)
    assert [batch.captions[row] for row in batch.near] == ["a red two"]
    assert batch.image_index[batch.near].tolist() == [0]
    assert batch.origin.tolist() == [0]
    assert not set(batch.near.tolist()) & set(batch.mismatched.tolist())


def test_a_near_miss_costs_only_against_its_origin_and_only_the_hardest_mismatch_counts():
    batch = flatten(BATCH, 2, {"a red one": "a red two"}.get)
    rewards = torch.zeros(len(batch.captions), requires_grad=True)
    with torch.no_grad():
        rewards[batch.mismatched[1]] = 3.0  # the harder one of the first image
        rewards[batch.near] = 1.0
    found = gradient(hard_loss(rewards, batch), rewards)
    assert found[batch.mismatched[0]] == 0
    assert found[batch.mismatched[1]] > 0
    assert found[batch.near[0]] == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))) / 2)
    assert found[batch.worse].abs().sum() == 0


def test_hard_negatives_of_nothing_cost_nothing():
    batch = flatten([BATCH[0]], 2)
    assert float(hard_loss(torch.ones(2), batch)) == 0


def gradient(loss, scores):
    return torch.autograd.grad(loss, scores, allow_unused=True)[0]


# Judged images drawn at random: 1 to 4 captions, some compared, some rated on some criteria.
rating = st.one_of(st.just(math.nan), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@st.composite
def drawn(draw):
    count = draw(st.integers(1, 4))
    pairs = [(a, b) for a in range(count) for b in range(count) if a < b]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=4)) if pairs else []
    ratings = [tuple(draw(rating) for _ in range(4)) for _ in range(count)]
    weight = tuple(draw(st.sampled_from([0.25, 1.0, 3.0])) for _ in chosen)
    name = draw(st.text("abcdef", min_size=6, max_size=6))
    captions = [f"{name} {at}" for at in range(count)]
    first, second = zip(*chosen, strict=True) if chosen else ((), ())
    top = (min(first),) if chosen else ()
    return image(name, captions, first, second, top, ratings=ratings, weight=weight)


groups = st.lists(drawn(), min_size=1, max_size=4, unique_by=lambda item: item.image_id)


def scores_of(batch):
    """Scores [N, 5] that depend on image and caption alone, so that they follow rows wherever they go."""
    rows = zip(batch.image_index.tolist(), batch.captions, strict=True)
    owners = {at: batch.captions[batch.image_index.tolist().index(at)] for at in set(batch.image_index.tolist())}
    seeds = [zlib.crc32(f"{owners[at]}|{text}".encode()) for at, text in rows]
    return torch.stack([torch.from_numpy(np.random.default_rng(seed).normal(size=5)).float() for seed in seeds])


def terms(batch, scores):
    return {
        "preference": preference_loss(scores[:, 0], batch),
        "anchor": anchor_loss(scores[:, 0], batch),
        "hard": hard_loss(scores[:, 0], batch),
        "rating": rating_loss(scores[:, 0], batch),
        "criteria": criteria_loss(scores[:, 1:], batch),
    }


@settings(deadline=None, max_examples=40)
@given(groups, st.randoms(use_true_random=False))
def test_the_order_of_images_changes_no_term(group, random):
    other = list(group)
    random.shuffle(other)
    first, second = flatten(group, 9), flatten(other, 9)
    before, after = terms(first, scores_of(first)), terms(second, scores_of(second))
    for name, value in before.items():
        assert float(value) == pytest.approx(float(after[name]), abs=1e-5), name


@settings(deadline=None, max_examples=40)
@given(groups)
def test_images_that_say_nothing_on_a_term_do_not_dilute_it(group):
    silent = image("zz", ["nobody judged this"], (), (), ())
    first, second = flatten(group, 0), flatten([*group, silent, silent], 0)
    before, after = terms(first, scores_of(first)), terms(second, scores_of(second))
    for name, value in before.items():
        assert float(value) == pytest.approx(float(after[name]), abs=1e-5), name


@settings(deadline=None, max_examples=40)
@given(groups)
def test_terms_are_finite_and_what_is_masked_gets_no_gradient(group):
    batch = flatten(group, 2)
    scores = scores_of(batch).requires_grad_()
    found = terms(batch, scores)
    assert all(math.isfinite(float(value.detach())) for value in found.values())
    rated = torch.isfinite(batch.ratings)
    by_rating = gradient(found["rating"], scores)
    assert torch.isfinite(by_rating).all()
    assert (by_rating[~rated.any(1)] == 0).all()
    assert (by_rating[:, 1:] == 0).all()
    by_criteria = gradient(found["criteria"], scores)
    assert torch.isfinite(by_criteria).all()
    assert (by_criteria[:, 0] == 0).all()
    assert (by_criteria[:, 1:][~rated] == 0).all()
    compared = torch.zeros(len(scores), dtype=torch.bool)
    compared[torch.cat([batch.better, batch.worse])] = True
    assert (gradient(found["preference"], scores)[~compared] == 0).all()


def test_a_mask_that_filled_in_the_middle_instead_would_be_noticed():
    batch = flatten([image("i", ["a", "b"], ratings=[(1.0,) * 4, NOT_RATED])], 0)
    careless = replace(batch, ratings=batch.ratings.nan_to_num(0.5), trust=torch.ones(2))
    scores = torch.ones(2, 5, requires_grad=True)
    assert (gradient(criteria_loss(scores[:, 1:], batch), scores)[1] == 0).all()
    assert (gradient(criteria_loss(scores[:, 1:], careless), scores)[1] != 0).any()


def test_ratings_pin_the_level_of_each_caption():
    batch = flatten([image("i", ["a", "b"], ratings=[(1.0, 0.5, math.nan, math.nan), (0.0,) * 4])], 0)
    scores = torch.zeros(2, requires_grad=True)
    loss = rating_loss(scores, batch)
    assert float(loss.detach()) == pytest.approx(LN2)
    # d/dr BCE = sigmoid(r) - target: 0.5 - 0.75 and 0.5 - 0, half of each
    assert gradient(loss, scores).tolist() == pytest.approx([-0.125, 0.25])


def test_a_criterion_orders_captions_only_where_ratings_differ():
    nan = math.nan
    batch = flatten([image("i", ["a", "b"], ratings=[(1.0, 0.5, nan, nan), (0.0, 0.5, nan, nan)])], 0)
    right = torch.tensor([[9.0, 0.0, 0.0, 0.0], [-9.0, 0.0, 0.0, 0.0]])
    # accuracy is right: next to nothing; completeness is a tie at its level: its entropy, ln 2, and no pair
    assert float(criteria_loss(right, batch)) == pytest.approx(LN2 / 2 / 2, abs=1e-3)


@settings(deadline=None, max_examples=40)
@given(groups, st.sampled_from([0.1, 7.0]))
def test_only_the_proportions_of_labelers_weights_matter(group, factor):
    scaled = [
        replace(
            item,
            weight=tuple(value * factor for value in item.weight),
            trust=tuple(value * factor for value in item.trust),
        )
        for item in group
    ]
    batch, other = flatten(group, 1), flatten(scaled, 1)
    for name, value in terms(batch, scores_of(batch)).items():
        assert float(value) == pytest.approx(float(terms(other, scores_of(other))[name]), abs=1e-5), name


def test_a_labeler_of_small_weight_is_close_to_none_even_alone_on_an_image():
    batch = flatten([image("i", ["a", "b"]), image("j", ["c", "d"], weight=(1e-6,))], 0)
    rewards = torch.tensor([1.0, 0.0, -50.0, 50.0])
    assert float(preference_loss(rewards, batch)) == pytest.approx(math.log1p(math.exp(-1)), abs=1e-3)


def test_spread_of_a_constant_is_nothing():
    assert spread(torch.full((5,), 3.0)) == 0.0
