"""The asset `reward_model`: settings, what the UI is told, and a run that goes on where another died."""

import logging

import pytest

from assets.reward_model import config_from, validations_table
from compalign_dagster import latest
from compalign_dagster.reward import folder
from compalign_dagster.settings import load
from tests.support.pipeline import BATCH, metadata_of, small_pipeline


def test_settings_reach_the_training_configuration_and_unset_ones_are_the_backbones(tmp_path):
    plain = config_from(load(home=tmp_path, backbone="blip-tiny"))
    assert (plain.accumulation, plain.precision, plain.patience, plain.processes) == (1, "fp32", 0, 1)
    given = {"accumulation": 4, "processes": 2, "patience": 3, "rating_weight": 0.0, "anchor_weight": 2.0}
    config = config_from(load(home=tmp_path, train_precision="bf16", criteria_weight=0.25, **given))
    assert {name: getattr(config, name) for name in given} == given
    assert (config.precision, config.criteria_weight) == ("bf16", 0.25)


def test_the_paper_profile_trains_with_imagerewards_batch_and_schedule(tmp_path):
    config = config_from(load(profile="paper", home=tmp_path))
    assert config.batch_images * config.accumulation == 8
    assert (config.lr, config.warmup, config.frozen_share) == (1e-5, 0.0, 0.7)
    assert (config.precision, config.patience) == ("bf16", 5)


def test_checkpoints_lie_below_home_unless_said_otherwise(tmp_path):
    assert load(home=tmp_path).checkpoints == tmp_path / "checkpoints"
    assert load(home=tmp_path, checkpoints=tmp_path / "other").checkpoints == tmp_path / "other"


def test_a_long_table_of_validations_is_thinned_and_keeps_its_end():
    found = [{"step": step, "accuracy": 0.5, "rating": None, "total": 1.0} for step in range(1, 96)]
    lines = validations_table(found).splitlines()
    assert lines[0] == "| step | accuracy | total |", "what was never measured has no column"
    assert len(lines) <= 2 + 21
    assert lines[-1].startswith("| 95 |")
    assert validations_table([]) == "no image was held out for validation"


@pytest.mark.slow
def test_a_run_that_died_before_publishing_goes_on_from_its_checkpoint(tmp_path, monkeypatch, caplog):
    settings = load(home=tmp_path, settle_seconds=0, pretrain_steps=4, train_steps=6, batch_images=8)
    pipeline = small_pipeline(settings, pairs=40, judged=60)
    for job, partition in (("land_batch", None), ("index_batch", BATCH)):
        pipeline.must(job, partition)

    def full_disk(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(folder, "save_model", full_disk)
        assert not pipeline.run("learn_reward").success
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert list(kept.glob("*.safetensors"))
    with caplog.at_level(logging.INFO, "compalign_dagster"):
        result = pipeline.must("learn_reward")
    assert "going on from checkpoint" in caplog.text
    assert not kept.exists()
    told = metadata_of(result, "reward_model")
    facts = latest.require(pipeline.store, "reward_model").facts
    assert told["validation_accuracy"] == facts["metrics"]["validation_accuracy"]
    assert 0 <= told["validation_accuracy"] <= 1
    assert told["judged_captions_over_long"] == facts["counts"]["judged_captions_over_long"]
    assert "| step |" in told["validations"]
    assert {"reward", "cosine"} <= set(facts["metrics"]["evidence"]["scorers"])
