import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from compalign_dagster.reward.data import judged_images
from compalign_dagster.reward.loading import loader_for
from compalign_dagster.reward.metrics import baseline_scores, held_out_metrics, held_out_rows
from compalign_dagster.reward.model import Outputs
from compalign_dagster.reward.training import backbone
from tests.support.tiny_reward import COLOURS, tiny_config, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"), judged=60)


@pytest.fixture
def model(data):
    return backbone("blip-tiny").build(tiny_config(), data)


def measure(model, data, rewards):
    """Figures of a model whose rewards are a function of the image's state and the caption."""

    def forward(image_states, captions, image_index):
        states = image_states[image_index].mean(dim=(2, 3))
        reward = torch.tensor([rewards(state, text) for state, text in zip(states, captions, strict=True)])
        return Outputs.of(reward, cosine=torch.zeros_like(reward))

    model.forward = forward
    model.encode_images = lambda batch: batch.float()
    images = loader_for(model, data.shards, 1)
    return held_out_metrics(model, images, judged_images(data, "test"), seed=0)


def seeing(state, text):
    """1 for the right colour, 0.5 for another, 0 for shop talk."""
    nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name][:2]) - state[:2].numpy()).sum())
    return 1.0 if nearest in text else 0.5 if "square" in text else 0.0


def test_a_model_that_sees_is_right_within_and_across_images(model, data):
    found = measure(model, data, seeing)
    assert found["preference_accuracy"]["value"] == 1.0
    assert found["preference_accuracy"]["n"] == 3 * 6
    assert found["cross_image_auc"]["value"] == 1.0
    assert found["test_images"] == 6


def test_offsets_of_images_leave_preferences_and_spoil_the_comparison_across_images(model, data):
    found = measure(model, data, lambda state, text: seeing(state, text) + float(state.sum()))
    assert found["preference_accuracy"]["value"] == 1.0
    assert found["cross_image_auc"]["value"] < 0.9


def test_a_constant_reward_is_wrong_about_every_preference(model, data):
    found = measure(model, data, lambda state, text: 0.0)
    assert found["preference_accuracy"]["value"] == 0.0
    assert found["cross_image_auc"]["value"] == 0.5


def test_a_baseline_that_the_model_lacks_has_no_figure(model, data):
    found = measure(model, data, seeing)
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    assert found["baselines"]["itm"] == {"preference_accuracy": nothing, "cross_image_auc": nothing}
    assert found["baselines"]["caption_length"]["preference_accuracy"]["n"] == 18


def test_an_empty_test_split_measures_nothing(model, data):
    found = held_out_metrics(model, loader_for(model, data.shards, 1), [], seed=0)
    assert found["preference_accuracy"]["value"] is None
    assert found["reward_mean"] is None


def test_baselines_are_those_from_before_training_where_they_are_given(model, data):
    images, split = loader_for(model, data.shards, 1), judged_images(data, "test")
    before = baseline_scores(model, images, split)
    assert set(before) == {"cosine", "itm", "label_free"}
    backwards = {name: {place: -score for place, score in rows.items()} for name, rows in before.items()}
    now = held_out_metrics(model, images, split, seed=0)["baselines"]
    then = held_out_metrics(model, images, split, seed=0, before=backwards)["baselines"]
    for figure in ("preference_accuracy", "cross_image_auc"):
        assert then["cosine"][figure]["value"] == pytest.approx(1 - now["cosine"][figure]["value"])
        assert then["caption_length"][figure] == now["caption_length"][figure]


def test_a_pair_that_was_not_scored_before_leaves_its_baseline_unmeasured(model, data):
    images, split = loader_for(model, data.shards, 1), judged_images(data, "test")
    before = baseline_scores(model, images, split)
    before["cosine"].popitem()
    found = held_out_metrics(model, images, split, seed=0, before=before)["baselines"]
    assert found["cosine"]["preference_accuracy"]["n"] == 0


def test_the_best_of_an_images_captions_is_no_match_where_people_refuse_it(tmp_path):
    rated = tiny_data(tmp_path / "rated", judged=30, rated=True)
    rows = held_out_rows(judged_images(rated, "test"))
    refused = [replace(image, ratings=((0.2,) * 4,) * 3) for image in judged_images(rated, "test")]
    assert len(rows.top) == len(refused)
    assert not len(held_out_rows(refused).top)
    unrated = [replace(image, ratings=((math.nan,) * 4,) * 3) for image in refused]
    assert len(held_out_rows(unrated).top) == len(refused)
