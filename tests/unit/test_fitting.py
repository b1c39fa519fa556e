import math
import random

import numpy as np
import pytest
import torch

from compalign_dagster.errors import CompalignError
from compalign_dagster.fitting import Fitting, Order, fit, learning_rate_share, reseed, seed_everything


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


def test_seeding_by_several_numbers_depends_on_each_and_on_nothing_before():
    def draw(*numbers):
        reseed(*numbers)
        return torch.rand(1).item()

    first = draw(7, 1, 2)
    torch.rand(10)
    assert draw(7, 1, 2) == first
    assert len({draw(7, 1, 2), draw(7, 2, 1), draw(7, 1, 3), draw(8, 1, 2)}) == 4


def test_a_batch_is_a_function_of_its_number_and_every_index_comes_once_an_epoch():
    forwards = [Order(10, 4, 3).at(number) for number in range(10)]
    order = Order(10, 4, 3)
    assert [order.at(number) for number in reversed(range(10))] == forwards[::-1]
    assert sorted(index for batch in forwards[:2] for index in batch) != list(range(8)), "drawn, not counted"
    seen = [index for batch in forwards[:5] for index in batch]
    assert {seen.count(index) for index in range(10)} <= {1, 2} and set(seen) == set(range(10))
    assert Order(10, 4, 4).at(0) != forwards[0]


def test_a_batch_larger_than_the_data_is_the_data_and_no_index_is_in_a_batch_twice():
    assert sorted(Order(3, 8, 0).at(5)) == [0, 1, 2]
    order = Order(10, 4, 1)
    batches = [order.at(number) for number in range(200)]
    assert all(len(set(batch)) == len(batch) for batch in batches)
    counts = np.bincount([index for batch in batches for index in batch])
    assert counts.min() > 0.8 * counts.max()


def bowl(weight, targets):
    return lambda number: ((weight - targets[number % len(targets)]) ** 2).sum()


def test_an_update_is_the_mean_over_its_micro_batches():
    one, two = (torch.nn.Parameter(torch.tensor([4.0, -2.0])) for _ in range(2))
    targets = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, -7.0])]
    whole = fit([one], lambda step: sum(bowl(one, targets)(at) for at in (0, 1)) / 2, steps=5, lr=0.1)
    parts = fit([two], bowl(two, targets), steps=5, lr=0.1, accumulation=2)
    assert parts == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(one, two, rtol=1e-6)


def test_a_fitting_that_goes_on_is_the_one_that_never_stopped():
    def fitting(weight):
        return Fitting([weight], steps=9, lr=0.1, warmup=0.3, weight_decay=0.1)

    quiet, stopped, again, forgetful = (torch.nn.Parameter(torch.tensor([4.0])) for _ in range(4))
    whole = fitting(quiet)
    whole.run(bowl(quiet, [1.0, 2.0, 3.0]))
    first = fitting(stopped)
    first.run(bowl(stopped, [1.0, 2.0, 3.0]), lambda step, loss: step == 3)
    assert first.step == 4 and len(first.curve) == 4
    for weight, state in ((again, first.state()), (forgetful, {})):
        weight.data.copy_(stopped.data)
        other = fitting(weight)
        other.resume(state, step=first.step, curve=first.curve)
        other.run(bowl(weight, [1.0, 2.0, 3.0]))
        assert len(other.curve) == 9
    assert torch.equal(again, quiet)
    assert not torch.equal(forgetful, quiet), "without the optimiser's tensors this test must see a difference"
