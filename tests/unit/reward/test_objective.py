import math
from dataclasses import replace

import pytest
import torch

from compalign_dagster.errors import CompalignError
from compalign_dagster.reward.data import judged_images
from compalign_dagster.reward.loading import loader_for, states_of
from compalign_dagster.reward.model import backbone
from compalign_dagster.reward.objective import Objective
from tests.support.tiny_reward import judged_image, tiny_config, tiny_data

TERMS = ("anchor_weight", "rating_weight", "criteria_weight", "hard_negatives")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"), rated=True)


@pytest.fixture(scope="module")
def train(data):
    return judged_images(data, "train")


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    return backbone("blip-tiny").build(tiny_config(), data)


def objective(model, data, train, **settings):
    model.config = tiny_config(**settings)
    return Objective(model.train(), loader_for(model, data.shards, 16), train)


def loss(objective, group):
    torch.manual_seed(1)
    return float(objective(group).detach())


def asked_of(model, monkeypatch):
    """The captions of every forward pass from here on."""
    found = []
    plain = model.heads

    def heads(states, captions, image_index):
        found.append((len(states), list(captions)))
        return plain(states, captions, image_index)

    monkeypatch.setattr(model, "heads", heads)
    return found


def test_a_loss_is_the_weighted_sum_of_its_terms(model, data, train):
    group = train[:6]
    off = dict.fromkeys(TERMS, 0.0)
    alone = loss(objective(model, data, train, **off), group)
    extra = {name: loss(objective(model, data, train, **off | {name: 1.0}), group) - alone for name in TERMS[:3]}
    together = loss(
        objective(model, data, train, **off | {"anchor_weight": 0.5, "rating_weight": 2.0, "criteria_weight": 3.0}),
        group,
    )
    expected = alone + 0.5 * extra["anchor_weight"] + 2 * extra["rating_weight"] + 3 * extra["criteria_weight"]
    assert together == pytest.approx(expected, rel=1e-5)
    assert all(value > 0 for value in extra.values())


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("anchor_weight", "anchor_loss"),
        ("anchor_weight", "hard_loss"),
        ("hard_negatives", "hard_loss"),
        ("rating_weight", "rating_loss"),
        ("criteria_weight", "criteria_loss"),
    ],
)
def test_a_term_of_weight_0_is_not_even_computed(model, data, train, monkeypatch, name, term):
    called = []
    module = "compalign_dagster.reward.objective"
    monkeypatch.setattr(f"{module}.{term}", lambda scores, batch: called.append(term) or scores.sum() * 0)
    loss(objective(model, data, train, **{name: 0.0}), train[:4])
    assert not called
    loss(objective(model, data, train), train[:4])
    assert called == [term]


def test_comparisons_of_weight_0_teach_nothing_and_are_still_measured(model, data, train):
    settings = {"anchor_weight": 0.0, "criteria_weight": 0.0}
    chosen = objective(model, data, train, preference_weight=0.0, **settings)
    both = objective(model, data, train, **settings)
    rating = float(objective(model, data, train, **settings).validate(train[:8]).rating)
    model.train()
    assert loss(chosen, train[:8]) == pytest.approx(0.5 * rating, rel=1e-4)
    assert loss(both, train[:8]) > loss(chosen, train[:8])
    assert chosen.validate(train[:8]).preference > 0


def test_anchors_of_weight_0_add_no_row_and_each_image_is_encoded_once(model, data, train, monkeypatch):
    found = asked_of(model, monkeypatch)
    own = [text for image in train[:4] for text in image.captions]
    loss(objective(model, data, train, anchor_weight=0.0), train[:4])
    loss(objective(model, data, train, hard_negatives=0.0, mismatches=2), train[:4])
    assert found[0] == (4, own)
    assert found[1][0] == 4
    assert found[1][1][: len(own)] == own
    assert len(found[1][1]) <= len(own) + 4 * 2


def encoded_in_a_step(model, data, train):
    seen = []
    hook = model.blip.vision_model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    loss(objective(model, data, train), train[:5])
    hook.remove()
    return seen


def test_an_image_is_encoded_once_for_all_of_its_rows(model, data, train):
    assert encoded_in_a_step(model, data, train) == [5]


def test_the_planted_bug_of_encoding_for_each_caption_is_noticed(model, data, train, monkeypatch):
    def for_each_caption(model, images, places):
        return torch.cat([states_of(model, images, [place]) for place in places for _ in range(3)])[::3]

    monkeypatch.setattr("compalign_dagster.reward.objective.states_of", for_each_caption)
    assert sum(encoded_in_a_step(model, data, train)) == 15


def test_hard_negatives_are_captions_with_one_word_changed_and_vary_by_torch_seed_alone(
    model, data, train, monkeypatch
):
    found = asked_of(model, monkeypatch)
    chosen = objective(model, data, train, mismatches=0, shuffled_captions=0.0)
    group = train[:6]
    own = sum(len(image.captions) for image in group)
    for seed in (1, 1, 2, 3, 4):
        torch.manual_seed(seed)
        chosen(group)
    near = [tuple(captions[own:]) for _, captions in found]
    assert near[0] == near[1]
    assert len(set(near)) > 1
    assert all(text.startswith("a ") and text.endswith(" square") for text in near[0])
    before = torch.get_rng_state()
    chosen.validate(group)
    chosen.validate(group)
    assert found[-1] == found[-2]
    assert torch.equal(torch.get_rng_state(), before), "validation must not move the training's generator"


def test_a_labeler_of_weight_0_changes_no_loss(model, data):
    def off(images):
        return objective(model, data, images), images[:6]

    def without(table):
        rows = [row for row in table.to_pylist() if row["labeler"] != "m"]
        return table.from_pylist(rows, table.schema)

    lies = [{**row, "accuracy": 1} if row["labeler"] == "m" else row for row in data.ranks.to_pylist()]
    noisy = replace(data, ranks=data.ranks.from_pylist(lies, data.ranks.schema))
    gone = replace(noisy, ranks=without(noisy.ranks), comparisons=without(noisy.comparisons))
    assert loss(*off(judged_images(noisy, "train", {"m": 0.0}))) == loss(*off(judged_images(gone, "train")))
    assert loss(*off(judged_images(noisy, "train", {"m": 0.1}))) != loss(*off(judged_images(gone, "train")))


def test_a_forward_pass_in_bf16_costs_much_the_same(model, data, train):
    chosen = objective(model, data, train)
    full = loss(chosen, train[:6])
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(chosen, train[:6]) == pytest.approx(full, rel=0.05)


def test_a_criterion_nobody_rated_is_not_trained(model, data, train):
    chosen = objective(model, data, train)
    assert chosen.trained_criteria(train).tolist() == [True, True, True, False]
    chosen(train[:6]).backward()
    last = model.head.layers[-1].weight.grad
    assert (last[:4].abs().sum(1) > 0).all()
    assert (last[4] == 0).all()
    model.zero_grad()
    assert not objective(model, data, train, criteria_weight=0.0).trained_criteria(train).any()


def test_images_with_ratings_alone_are_of_use_while_ratings_are(model, data, train):
    silent = judged_image(["x"], better=(), worse=(), top=())
    rated = judged_image(["x"], better=(), worse=(), top=(), ratings=[(1.0, math.nan, math.nan, math.nan)])
    images = [train[0], silent, rated]
    assert objective(model, data, train).useful(images) == [train[0], rated]
    assert objective(model, data, train, rating_weight=0.0, criteria_weight=0.0).useful(images) == [train[0]]


def test_validation_says_what_each_term_costs_and_how_often_the_order_is_right(model, data):
    split = judged_images(data, "validation")
    chosen = objective(model, data, split)
    found = chosen.validate(split)
    assert not model.training
    assert 0 <= found.accuracy <= 1
    weights = chosen.weights
    assert found.total == pytest.approx(
        sum(weights[name] * getattr(found, name) for name in ("preference", "anchor", "rating", "criteria"))
    )


def test_validation_does_not_depend_on_how_the_split_is_cut(model, data):
    split = judged_images(data, "train")
    settings = {"anchor_weight": 0.0}  # mismatches come from the group
    small, large = (
        objective(model, data, split, batch_images=size, **settings).validate(split) for size in (5, len(split))
    )
    for name in ("preference", "rating", "criteria", "accuracy", "total"):
        assert getattr(small, name) == pytest.approx(getattr(large, name), abs=1e-5), name


def test_an_image_that_is_left_alone_in_a_group_does_not_dilute_the_anchors(model, data):
    split = judged_images(data, "train")[:5]
    chosen = objective(model, data, split, batch_images=4, hard_negatives=0.0)
    assert chosen.validate(split).anchor == pytest.approx(chosen.validate(split[:4]).anchor, abs=1e-6)
    assert math.isnan(chosen.validate(split[:1]).anchor)


def test_a_validation_without_ratings_has_no_figure_for_them(model, data, tmp_path):
    split = judged_images(tiny_data(tmp_path), "validation")
    found = objective(model, data, split).validate(split).as_dict()
    assert found["rating"] is found["criteria"] is None
    assert found["total"] == pytest.approx(found["preference"] + found["anchor"])
    empty = objective(model, data, split).validate([]).as_dict()
    assert empty["preference"] is empty["accuracy"] is None


@pytest.mark.parametrize("column", [0, 2])
def test_a_head_without_spread_is_refused_before_training(model, data, train, monkeypatch, column):
    plain = model.heads

    def constant(*args):
        found = plain(*args).clone()
        found[:, column] = 1.0
        return found

    objective(model, data, train).check_spread(train[:8])
    monkeypatch.setattr(model, "heads", constant)
    with pytest.raises(CompalignError, match="standard deviation above 0.001, found 0"):
        objective(model, data, train).check_spread(train[:8])


def test_a_head_that_is_not_trained_may_be_constant(model, data, train, monkeypatch):
    plain = model.heads
    monkeypatch.setattr(model, "heads", lambda *args: plain(*args) * torch.tensor([1, 1, 1, 1, 0]))
    objective(model, data, train).check_spread(train[:8])


def test_an_infinite_validation_loss_is_named_and_never_kept_as_the_best(model, data, train, monkeypatch):
    def endless(rewards, batch):
        return rewards.sum() * 0 + torch.inf

    monkeypatch.setattr("compalign_dagster.reward.objective.preference_loss", endless)
    with pytest.raises(CompalignError, match="validation of a reward model: expected a finite loss"):
        objective(model, data, train).validate(train)
