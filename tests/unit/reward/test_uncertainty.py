"""How sure a reward is: the last layer's posterior against exact answers, and what training makes of it."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.data import judged_images
from compalign_dagster.reward.folder import load_model, save_model
from compalign_dagster.reward.loading import loader_for
from compalign_dagster.reward.losses import PairBatch
from compalign_dagster.reward.model import backbone
from compalign_dagster.reward.objective import Objective
from compalign_dagster.reward.training import train
from compalign_dagster.reward.uncertainty import (
    Information,
    Posterior,
    fit_posterior,
    information,
    preference,
)
from tests.support.tiny_dual import KINDS, tiny_dual
from tests.support.tiny_reward import tiny_config, tiny_data
from tests.unit.reward.test_offline import model, states, wise  # noqa: F401  fixtures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"), rated=True)


@pytest.fixture(scope="module")
def trained(data):
    return train(tiny_config(), data)


def comparisons(differences):
    """A batch of one image that holds a comparison for each row of differences [P, K]; worse rows are zero."""
    count = len(differences)
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = PairBatch(
        captions=[""] * (count + 1),
        image_index=torch.zeros(count + 1, dtype=torch.int64),
        better=torch.arange(count),
        worse=torch.full((count,), count),
        weight=torch.ones(count),
        top=nothing,
        mismatched=nothing,
        near=nothing,
        origin=nothing,
        ratings=torch.full((count + 1, 4), torch.nan),
        trust=torch.zeros(count + 1),
    )
    return torch.cat([differences, torch.zeros(1, differences.shape[1])]), batch


class Comparing:
    """An objective of comparisons alone: -log sigmoid of a difference."""

    def of_rewards(self, rewards, batch):
        return F.softplus(rewards[batch.worse] - rewards[batch.better]).mean()


def informed(differences, weights, images=1):
    features, batch = comparisons(differences)
    return information(Comparing(), [(images, features, features @ weights, batch)])


# the mathematics


def test_information_is_the_closed_form_sum_over_comparisons():
    generator = torch.Generator().manual_seed(0)
    differences, weights = torch.randn(7, 3, generator=generator), torch.tensor([0.5, -1.0, 2.0])
    found = informed(differences, weights, images=7)
    p = torch.sigmoid(differences @ weights)
    expected = (differences * (p * (1 - p))[:, None]).T @ differences
    torch.testing.assert_close((found.axes * found.amounts) @ found.axes.T, expected.double(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((found.axes @ found.slope).float(), -differences.T @ (1 - p), atol=1e-5, rtol=1e-4)


def test_the_posterior_of_one_weight_is_close_to_the_exact_one():
    """On a grid: prior N(0, 1/4), forty comparisons that say one thing or the other."""
    differences = torch.linspace(-1, 1, 41)[:, None]
    signs = torch.where(torch.arange(41) % 3 == 0, -1.0, 1.0)[:, None]
    said = differences * signs
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    log = F.logsigmoid(said.double() * grid).sum(0) - 2 * grid**2
    mass = torch.softmax(log, 0)
    mode = grid[log.argmax()]
    mean = (mass * grid).sum()
    exact = float((mass * (grid - mean) ** 2).sum().sqrt())
    factor = informed(said, torch.tensor([float(mode)]), images=41).factor(4.0)
    assert float(factor.abs()) == pytest.approx(exact, rel=0.05)


def test_more_judgements_make_surer_and_none_leave_the_prior():
    row, weights = torch.tensor([[1.0, 0.0]]), torch.zeros(2)
    spread = [
        torch.linalg.norm(informed(row, weights, images=count).factor(2.0), dim=1).tolist() for count in (1, 10, 100)
    ]
    assert spread[0][0] > spread[1][0] > spread[2][0] > 0
    assert [beside for _, beside in spread] == pytest.approx([0.5**0.5] * 3), "a direction that nobody judged"


def test_the_spread_of_refits_is_never_larger_than_the_doubt():
    found = informed(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.ones(4), images=20)
    rows = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for precision in (0.1, 1.0, 10.0):
        sampling = (rows @ found.sampling_factor(precision)).norm(dim=1)
        assert (sampling <= (rows @ found.factor(precision)).norm(dim=1)).all()


def test_the_refitted_weights_are_those_of_the_least_penalised_loss():
    differences = torch.randn(30, 3, generator=torch.Generator().manual_seed(3))
    start, weights = torch.tensor([0.1, 0.0, -0.1]), torch.tensor([0.2, -0.1, 0.0])
    features, batch = comparisons(differences)
    for _ in range(8):  # steps of second order, taken again and again, end in the exact least
        found = informed(differences, weights, images=30)
        weights = weights + found.refitted(5.0, weights - start).float()
    moved = weights.clone().requires_grad_()
    loss = 30 * Comparing().of_rewards(features @ moved, batch) + 2.5 * ((moved - start) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, moved)
    torch.testing.assert_close(gradient, torch.zeros(3), atol=1e-4, rtol=0)


def test_groups_whose_gradients_scatter_less_than_single_observations_make_surer():
    """Logistic data in groups: one comparison an image has dispersion 1, twenty an image about 1/20."""
    rng = np.random.default_rng(0)
    weights = np.array([1.0, -0.5])
    found = []
    for together in (1, 20):
        groups = []
        for _ in range(200):  # of ten images each
            rows = rng.normal(size=(10 * together, 2))
            said = np.where(rng.random(len(rows)) < 1 / (1 + np.exp(-rows @ weights)), 1.0, -1.0)
            features, batch = comparisons(torch.tensor(rows * said[:, None], dtype=torch.float32))
            groups.append((10, features, features @ torch.tensor(weights, dtype=torch.float32), batch))
        found.append(information(Comparing(), groups).dispersion)
    assert found[0] == pytest.approx(1.0, rel=0.2)
    assert found[1] == pytest.approx(1 / 20, rel=0.2)


def test_images_that_stand_for_more_say_what_so_many_would():
    generator = torch.Generator().manual_seed(4)
    groups = []
    for _ in range(100):
        features, batch = comparisons(torch.randn(5, 3, generator=generator))
        groups.append((5, features, features @ torch.ones(3), batch))
    few, many = information(Comparing(), groups), information(Comparing(), groups * 3)
    assert few.dispersion == pytest.approx(many.dispersion, rel=0.02)
    standing = few.standing_for(3)
    torch.testing.assert_close(standing.amounts, many.amounts)
    torch.testing.assert_close(standing.axes @ standing.slope, many.axes @ many.slope)
    same = [(found.factor(2.0) @ found.factor(2.0).T).trace() for found in (standing, many)]
    assert float(same[0]) == pytest.approx(float(same[1]), rel=0.02)


def test_a_preference_in_doubt_moves_towards_one_half_and_keeps_its_side():
    difference = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    sure, doubted = preference(difference, torch.zeros(4)), preference(difference, torch.full((4,), 2.0))
    torch.testing.assert_close(sure, torch.sigmoid(difference))
    assert ((doubted - 0.5).abs() <= (sure - 0.5).abs()).all()
    assert ((doubted > 0.5) == (sure > 0.5)).all()
    draws = np.random.default_rng(0).normal(3.0, 2.0, 200_000)
    assert float(doubted[3]) == pytest.approx((1 / (1 + np.exp(-draws))).mean(), abs=0.01)


def test_a_posterior_that_was_not_fitted_says_nan():
    assert Posterior(3)(torch.ones(2, 3)).isnan().all()


# the backbones


def assert_linear(net, image_states, captions, index):
    """The contract between `features`, `last_layer` and the reward, and what `forward` says of doubt."""
    with torch.no_grad():
        features = net.features(image_states, captions, index)
        torch.testing.assert_close(features @ net.last_layer(), net.heads(image_states, captions, index)[:, 0])
        assert net(image_states, captions, index).reward_std.isnan().all(), "not fitted"
        width = features.shape[1]
        net.posterior.factor.copy_(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))
        found = net(image_states, captions, index).reward_std
        covariance = net.posterior.factor @ net.posterior.factor.T
        torch.testing.assert_close(found, ((features @ covariance) * features).sum(1).sqrt(), rtol=1e-4, atol=1e-4)


CAPTIONS, INDEX = ["a red square", "buy now", "a blue square"], torch.tensor([0, 1, 1])


def test_the_reward_of_blip_is_linear_in_its_features(data):
    torch.manual_seed(0)
    net = backbone("blip-tiny").build(tiny_config(), data).eval()
    torch.nn.init.normal_(net.head.layers[-1].bias)
    assert_linear(net, net.encode_images(torch.randint(0, 255, (2, 3, 16, 16)).byte()), CAPTIONS, INDEX)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_of_two_towers_is_linear_in_its_features(kind, data, tmp_path):
    folder = tiny_dual(kind, tmp_path / kind, data.captions["caption"].to_pylist())
    net = backbone("dual").build(reward_config({"backbone": "dual", "model": str(folder)}), data).eval()
    torch.nn.init.normal_(net.head.rest.layers[-1].bias)
    assert_linear(net, net.encode_images(torch.randint(0, 255, (2, 3, 16, 16)).byte()), CAPTIONS, INDEX)


def test_the_reward_of_the_offline_backbone_is_linear_in_its_features(wise):  # noqa: F811
    torch.nn.init.normal_(wise.agreement.direction)
    torch.nn.init.normal_(wise.agreement.offset)
    assert_linear(wise, states(1, 2), CAPTIONS, INDEX)


# training


def test_training_fits_it_and_a_saved_model_is_as_unsure_as_before(trained, tmp_path):
    again = load_model(save_model(trained.model, tmp_path / "model", record=trained.record))
    torch.manual_seed(0)
    image = torch.randint(0, 255, (1, 3, 16, 16)).byte()
    index = torch.zeros(3, dtype=torch.int64)
    with torch.inference_mode():
        before, after = (net(net.encode_images(image), CAPTIONS, index) for net in (trained.model, again))
    assert torch.isfinite(before.reward_std).all()
    assert (before.reward_std > 0).all()
    assert torch.equal(before.reward_std, after.reward_std)
    assert trained.metrics["reward_spread"] > 0, "of the rewards: no doubt of any one"
    assert "reward_std" not in trained.metrics
    facts = trained.record["uncertainty"]
    assert facts["precision"] > 0
    assert 0 < facts["effective_weights"] < len(trained.model.last_layer())


def test_without_held_out_comparisons_nothing_is_claimed(data):
    net = backbone("blip-tiny").build(tiny_config(), data)
    images = judged_images(data, "train")
    objective = Objective(net, loader_for(net, data.shards, 16), images)
    assert fit_posterior(objective, images, [], net.last_layer().detach()) is None


def test_of_a_large_training_split_a_drawn_part_is_looked_at_and_stands_for_all(data, monkeypatch):
    net = backbone("blip-tiny").build(tiny_config(anchor_weight=0.0, hard_negatives=0.0, batch_images=2), data)
    train_images, validation = judged_images(data, "train"), judged_images(data, "validation")
    objective = Objective(net, loader_for(net, data.shards, 16), train_images)
    start, read = net.last_layer().detach(), net.features
    rows: list[int] = []
    monkeypatch.setattr(
        net, "features", lambda states, texts, index: rows.append(len(texts)) or read(states, texts, index)
    )
    whole, seen = fit_posterior(objective, train_images, validation, start), sum(rows)
    monkeypatch.setattr("compalign_dagster.reward.uncertainty.MOST_IMAGES", len(train_images) // 2)
    part = fit_posterior(objective, train_images, validation, start)
    assert sum(rows) - seen < 0.7 * seen
    assert float(part.known.amounts.sum()) == pytest.approx(float(whole.known.amounts.sum()), rel=0.3)


def test_every_image_of_the_training_split_is_counted_once_however_they_are_grouped(data):
    """Without anchors, which tie the images of a group together, groups of any size say the same."""
    found = []
    for size in (2, 8):
        torch.manual_seed(0)
        config = tiny_config(batch_images=size, anchor_weight=0.0, hard_negatives=0.0)
        net = backbone("blip-tiny").build(config, data)
        images = judged_images(data, "train")
        known = information(
            objective := Objective(net, loader_for(net, data.shards, 16), images), objective.last_layer(images)
        )
        found.append((known.axes * known.amounts) @ known.axes.T)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    assert math.isclose(float(found[0].trace()), float(found[1].trace()), rel_tol=1e-3)


def test_a_model_of_the_format_before_is_refused_by_name(trained, tmp_path):
    folder = save_model(trained.model, tmp_path / "model")
    manifest = folder / "model.json"
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(InputError, match=r"model\.json.*format 3.*format 2"):
        load_model(folder)


# planted bugs: what the tests above are for


def test_the_planted_bug_of_a_mean_over_images_for_a_sum_turns_the_closed_form_red(monkeypatch):
    plain = information
    once = lambda objective, groups: plain(objective, [(1, *rest) for _, *rest in groups])  # noqa: E731
    monkeypatch.setitem(globals(), "information", once)
    with pytest.raises(AssertionError):
        test_information_is_the_closed_form_sum_over_comparisons()
    with pytest.raises(AssertionError):
        test_the_posterior_of_one_weight_is_close_to_the_exact_one()


def test_the_planted_bug_of_precision_for_variance_turns_the_exact_posterior_red(monkeypatch):
    monkeypatch.setattr(Information, "factor", lambda self, precision: self.axes * (self.amounts + precision) ** 0.5)
    with pytest.raises(AssertionError):
        test_the_posterior_of_one_weight_is_close_to_the_exact_one()
    with pytest.raises(AssertionError):
        test_more_judgements_make_surer_and_none_leave_the_prior()


def test_the_planted_bug_of_a_forgotten_constant_turns_the_contract_red(data, monkeypatch):
    from compalign_dagster.reward import head

    monkeypatch.setattr(head, "with_constant", lambda features: torch.cat([features, features[:, :1] * 0], dim=1))
    with pytest.raises(AssertionError):
        test_the_reward_of_blip_is_linear_in_its_features(data)
