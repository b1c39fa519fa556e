"""The benchmark of doubt on a made-up table of agreements: no wheels, no data pack."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from benchmarks.uncertainty import curves, measure
from benchmarks.uncertainty.__main__ import main, measure_all
from benchmarks.uncertainty.heads import Table, Trainer
from benchmarks.uncertainty.tables import page
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.data import SPLITS, judged_images
from compalign_dagster.statistics import Bootstrap
from tests.support.tiny_reward import tiny_data
from tests.unit.reward.test_offline import model  # noqa: F401  a fixture: no wheels

CONFIG = reward_config({"backbone": "offline", "steps": 4, "batch_images": 4, "validate_every": 2})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = tiny_data(tmp_path_factory.mktemp("tiny"), judged=20, rated=True)
    return replace(data, crawl=data.crawl.slice(0, 0))


@pytest.fixture(scope="module")
def table(data):
    """Images and captions of one colour agree."""
    judged = [image for split in SPLITS for image in judged_images(data, split)]
    captions = sorted({text for image in judged for text in image.captions})
    generator = torch.Generator().manual_seed(0)
    agreements = torch.randn(len(judged), len(captions), 2, generator=generator)
    for at, image in enumerate(judged):
        agreements[at, captions.index(image.captions[0])] += 2
    return Table(
        {image.place: at for at, image in enumerate(judged)},
        {text: at for at, text in enumerate(captions)},
        agreements,
        normalize(torch.randn(len(judged), 384, generator=generator), dim=1),
        normalize(torch.randn(len(captions), 384, generator=generator), dim=1),
    )


def test_without_the_data_pack_it_says_so_and_exits_with_2(tmp_path, capsys):
    assert main(["--datapack", str(tmp_path)]) == 2
    assert "judged-00000.tar" in capsys.readouterr().err


def test_an_interval_covers_what_lies_inside_it_and_no_more():
    change = torch.tensor([[0.5, 3.0], [-1.5, 0.0]])
    found = measure.inside(change, torch.ones(2))
    assert found[0.5].tolist() == [0.5, 0.5]
    assert found[0.9].tolist() == [1.0, 0.5]
    normal = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0)) * 2
    for level, share in measure.inside(normal, torch.tensor([2.0])).items():
        assert float(share[0]) == pytest.approx(level, abs=0.01)


def test_errors_and_chances_are_those_of_a_made_up_model_that_knows_its_doubt():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.1, 4.0, 4000)
    truth = np.abs(rng.normal(size=4000))
    found = measure.Answers(truth + rng.normal(size=4000) * std, std, np.arange(4000))
    draws = Bootstrap(4000, resamples=50, seed=0)
    told = measure.error_figures(found, draws)
    assert told["auc_lead_of_std"]["low"] > 0
    assert measure.probability_figures(found, draws)["log_loss_with_minus_without"]["high"] < 0


@pytest.mark.slow
def test_only_the_answers_that_were_asked_for_are_learned_from(data, table, model):  # noqa: F811
    images = judged_images(data, "train")
    trainer = Trainer(CONFIG, table)
    pool = curves.pool_of(trainer.untrained(), images, data)
    assert len(pool.asked) == len(set(pool.asked)) == 3 * len(images)
    found = curves.labelled(data, images, pool.asked[:2])
    assert {image.image_id for image in found} == {name for name, _ in pool.asked[:2]}
    assert not any(image.rated for image in found)
    for image in found:
        pairs = zip(image.better, image.worse, strict=True)
        met = {frozenset((image.caption_ids[a], image.caption_ids[b])) for a, b in pairs}
        assert met <= {captions for name, captions in pool.asked[:2] if name == image.image_id}


@pytest.mark.slow
def test_every_figure_is_measured_and_told(data, table, model):  # noqa: F811
    result = measure_all(CONFIG, data, table, folds=2, refits=2, seeds=1, budgets=(3, 6))
    json.dumps(result, allow_nan=False)
    assert [entry["budget"] for entry in result["learning"]] == [3, 6]
    assert set(result["learning"][0]["strategies"]) == set(curves.STRATEGIES)
    assert len(result["coverage"]) == 8
    told = page(result)
    assert "| 6 | most informative |" in told
    assert "four times the images" in told
