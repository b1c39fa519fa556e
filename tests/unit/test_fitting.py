import math
import random

import numpy as np
import pytest
import torch

from compalign_dagster.errors import CompalignError
from compalign_dagster.fitting import fit, learning_rate_share, seed_everything


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_nothing():
    shares = [learning_rate_share(step, 100, 0.1) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == pytest.approx(1.0)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[100] == pytest.approx(0.0)


def test_without_warmup_the_first_step_has_the_whole_rate():
    assert learning_rate_share(0, 10, 0.0) == pytest.approx(1.0)


def test_fitting_finds_the_bottom_of_a_bowl_and_tells_every_step():
    weight = torch.nn.Parameter(torch.tensor([4.0]))
    told = []
    curve = fit([weight], lambda step: ((weight - 1) ** 2).sum(), steps=200, lr=0.1, on_step=lambda *a: told.append(a))
    assert float(weight.detach()) == pytest.approx(1.0, abs=0.05)
    assert curve[0] == pytest.approx(9.0)
    assert [step for step, _ in told] == list(range(200))
    assert [loss for _, loss in told] == curve


def test_groups_keep_their_own_rate():
    slow, fast = (torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    groups = [{"params": [slow], "lr": 1e-4}, {"params": [fast]}]
    fit(groups, lambda step: (slow + fast).sum(), steps=1, lr=0.1)
    assert 1 - float(slow.detach()) == pytest.approx(1e-4, rel=0.01)
    assert 1 - float(fast.detach()) == pytest.approx(0.1, rel=0.01)


def test_a_loss_that_is_not_finite_stops_at_once_and_names_the_step():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    with pytest.raises(CompalignError, match="training step 2.*nan"):
        fit([weight], lambda step: weight.sum() * (math.nan if step == 2 else 1), steps=5, lr=0.1)


def test_seeding_repeats_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
