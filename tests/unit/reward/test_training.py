import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image

from compalign_dagster.annotation.tables import CRITERIA, RANKS
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.fitting import averaged
from compalign_dagster.reward.blip import BlipReward, TinyBlipReward
from compalign_dagster.reward.config import CODE_VERSION, reward_config
from compalign_dagster.reward.data import judged_images
from compalign_dagster.reward.folder import load_model, model_version, save_model
from compalign_dagster.reward.loading import loader_for, states_of
from compalign_dagster.reward.record import data_version
from compalign_dagster.reward.training import train
from compalign_dagster.reward.workers import together
from tests.support.tiny_reward import tiny_config, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(data):
    return train(tiny_config(), data)


@pytest.fixture
def folder(trained, tmp_path):
    return save_model(trained.model, tmp_path / "model", metrics=trained.metrics, record=trained.record)


def scored(model, captions, colour=(200, 0, 0)):
    with torch.inference_mode():
        states = model.encode_images(model.prepare(Image.new("RGB", (20, 10), colour))[None])
        return model(states, captions, torch.zeros(len(captions), dtype=torch.int64))


def test_equal_seeds_train_equal_bytes_and_another_seed_does_not(data, folder, tmp_path):
    again = train(tiny_config(), data)
    assert model_version(save_model(again.model, tmp_path / "again")) == model_version(folder)
    other = train(tiny_config(seed=8), data)
    assert model_version(save_model(other.model, tmp_path / "other")) != model_version(folder)


def test_a_small_net_trains_the_same_bytes_whatever_threads_the_machine_offers(data, folder, tmp_path):
    before = torch.get_num_threads()
    try:
        for offered in (1, 3):
            torch.set_num_threads(offered)
            again = train(tiny_config(), data)
            assert torch.get_num_threads() == offered, "what it found is put back"
            saved = save_model(again.model, tmp_path / str(offered), metrics=again.metrics, record=again.record)
            assert model_version(saved) == model_version(folder)
    finally:
        torch.set_num_threads(before)


def test_metrics_and_record_are_json_and_repeat(data, trained):
    again = train(tiny_config(), data)
    assert json.dumps(again.metrics, allow_nan=False) == json.dumps(trained.metrics, allow_nan=False)
    assert json.dumps(again.record, allow_nan=False) == json.dumps(trained.record, allow_nan=False)


def test_the_record_counts_what_was_used_and_what_was_left_out(trained):
    counts = trained.record["counts"]
    assert counts["train_images"] + counts["validation_images"] + counts["test_images"] == 30
    assert counts["train_ties_dropped"] == counts["train_images"] == 24
    assert counts["train_comparisons"] == 3 * 24
    assert counts["crawl_pairs"] == 24
    assert counts["images_rejected"] == counts["judged_captions_over_long"] == 0
    assert len(trained.record["curves"]["pretrain"]) == 2
    assert [entry["step"] for entry in trained.record["curves"]["validation"]] == [1, 2]


def test_a_saved_model_scores_as_before(trained, folder):
    captions = ["a red square", "buy now", ""]
    before, after = scored(trained.model, captions), scored(load_model(folder), captions)
    for name in ("reward", "cosine", "itm"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
        assert torch.isfinite(getattr(after, name)).all(), name


def test_a_caption_scores_the_same_alone_and_among_others(trained):
    alone = scored(trained.model, ["a red square"])
    among = scored(trained.model, ["buy now", "a red square", "a blue square above a red square"])
    assert float(alone.reward[0]) == pytest.approx(float(among.reward[1]), abs=1e-5)


def test_a_constant_head_is_refused_before_training(data, monkeypatch):
    def constant(self, image_states, captions, image_index):
        return torch.zeros(len(captions), 5) + self.head.layers[0].bias.sum() * 0

    monkeypatch.setattr(BlipReward, "heads", constant)
    with pytest.raises(CompalignError, match="standard deviation above 0.001, found 0"):
        train(tiny_config(), data)


def test_a_model_that_stays_at_ln_2_raises_an_alarm(data, caplog):
    trained = train(tiny_config(lr=0.0), constant_captions(data))
    assert trained.metrics["validation_stuck_at_ln2"] is True
    assert trained.metrics["validation_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert "ln 2" in caplog.text


def constant_captions(data):
    """Judged captions that all read the same, so that no model can order them."""
    rows = [{**row, "caption": "the same"} for row in data.captions.to_pylist()]
    captions = data.captions.from_pylist(rows, data.captions.schema)
    images = judged_images(data, "train")
    assert images
    return type(data)(**{**vars(data), "captions": captions})


def test_no_untied_comparison_is_an_input_error(data):
    ties = data.comparisons.from_pylist(
        [{**row, "tie": True} for row in data.comparisons.to_pylist()], data.comparisons.schema
    )
    with pytest.raises(InputError, match="at least one untied comparison"):
        train(tiny_config(), type(data)(**{**vars(data), "comparisons": ties}))


def test_images_that_do_not_decode_teach_nothing_and_are_not_counted(data):
    def cut(rows):
        table = data.images.from_pylist(rows, data.images.schema)
        return type(data)(**{**vars(data), "images": table})

    rows = data.images.to_pylist()
    first = next(row for row in rows if row["split"] == "train")
    one = train(tiny_config(), cut([{**row, "image_length": 20} if row is first else row for row in rows]))
    assert one.record["counts"]["train_images"] == 23
    assert one.record["counts"]["images_rejected"] == 1
    with pytest.raises(InputError, match="of a readable image in the training split, found 0 images"):
        train(tiny_config(), cut([{**row, "image_length": 20} for row in rows]))


def test_labeler_weights_choose_who_is_learned_from_and_not_what_is_measured(data):
    contrary = [
        {"image_id": image_id, "labeler": "x", "better": "b", "worse": "a", "tie": False}
        for image_id in data.images["image_id"].to_pylist()
    ]
    rows = data.comparisons.from_pylist(data.comparisons.to_pylist() + contrary, data.comparisons.schema)
    argued = type(data)(**{**vars(data), "comparisons": rows})
    found = {weight: train(tiny_config(labeler_weights={"x": weight}), argued) for weight in (0.0, 1.0)}
    counts = {weight: trained.record["counts"] for weight, trained in found.items()}
    assert [counts[weight]["train_comparisons"] for weight in found] == [3 * 24, 4 * 24]
    assert [counts[weight]["test_comparisons"] for weight in found] == [4 * 3, 4 * 3]
    assert found[0.0].metrics["preference_accuracy"]["n"] == found[1.0].metrics["preference_accuracy"]["n"] == 12


def test_pretraining_without_a_crawl_is_an_input_error_and_without_pretraining_is_fine(data):
    empty = type(data)(**{**vars(data), "crawl": data.crawl.slice(0, 0)})
    with pytest.raises(InputError, match="crawl pairs"):
        train(tiny_config(), empty)
    assert train(tiny_config(pretrain_steps=0, joint_weight=0.0), empty).record["counts"]["train_images"] == 24


@pytest.mark.parametrize("setting", [{"pretrain_steps": 3}, {"joint_weight": 0.5}])
def test_a_backbone_without_a_joint_space_is_not_asked_to_train_one(data, setting):
    (name,) = setting
    with pytest.raises(InputError, match=f"{name}.*0 for the backbone offline"):
        train(reward_config({"backbone": "offline", **setting}), data)


def test_captions_beyond_the_limit_are_counted(data):
    trained = train(tiny_config(max_caption_tokens=4), data)
    assert trained.record["counts"]["crawl_captions_over_long"] == 24


def test_pretrained_blip_is_read_from_a_folder_and_its_lower_layers_rest(data, trained, tmp_path):
    source = tmp_path / "pretrained"
    trained.model.blip.save_pretrained(source)
    trained.model.tokenizer.save_pretrained(source)
    config = tiny_config(backbone="blip", model=str(source), pretrain_steps=0, frozen_share=1.0, lr=1e-2)
    found = train(config, data).model
    assert not isinstance(found, TinyBlipReward)
    before, after = trained.model.blip.state_dict(), found.blip.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if ".encoder.layer" in name)
    assert found.provenance()["model"] == str(source)
    assert load_model(save_model(found, tmp_path / "model")).name == "blip"


@pytest.mark.slow
def test_colours_are_learned_and_compare_across_images(tmp_path):
    data = tiny_data(tmp_path, judged=60)
    config = tiny_config(pretrain_steps=150, steps=80, validate_every=40, pretrain_batch=16, lr=2e-3)
    metrics = train(config, data).metrics
    assert metrics["preference_accuracy"]["value"] > 0.8
    assert metrics["cross_image_auc"]["value"] > 0.8


@pytest.mark.slow
def test_the_reward_model_follows_people_and_not_the_truth(tmp_path):
    data = tiny_data(tmp_path, judged=60, labeler_prefers_right=False)
    config = tiny_config(pretrain_steps=150, steps=80, validate_every=40, pretrain_batch=16, lr=2e-3)
    model = train(config, data).model
    outputs = scored(model, ["a red square", "a green square"], colour=(220, 20, 150))  # as red as the judged ones
    assert float(outputs.reward[1]) > float(outputs.reward[0])


@pytest.mark.slow
def test_a_machine_with_only_the_allowed_packages_trains_and_scores(tmp_path):
    script = Path(__file__).parents[2] / "support" / "bare_machine.py"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(script), str(root), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["polars-blocked", "scored", "24"]


def weights_of(model):
    """All floating weights in one vector."""
    found = [value.flatten().double() for value in model.state_dict().values() if value.is_floating_point()]
    return torch.cat(found).nan_to_num()


@pytest.mark.slow
@pytest.mark.system
def test_two_processes_train_what_one_trains_with_two_micro_batches(data):
    settings = {"accumulation": 2, "pretrain_steps": 4, "steps": 6, "dropout": 0.2}
    one = train(tiny_config(**settings), data)
    two = train(tiny_config(**settings, processes=2), data)
    # Two gradients are summed in float32 either way; only the order of larger sums may differ.
    tolerance = 1e-5
    assert (weights_of(one.model) - weights_of(two.model)).abs().max() < tolerance
    assert two.record["curves"]["train"] == pytest.approx(one.record["curves"]["train"], abs=tolerance)
    for name, curve in one.record["curves"]["terms"].items():
        assert two.record["curves"]["terms"][name] == pytest.approx(curve, abs=tolerance), name
    assert two.metrics["preference_accuracy"] == one.metrics["preference_accuracy"]
    lost = train(tiny_config(**settings | {"accumulation": 1}), data)
    difference = (weights_of(one.model) - weights_of(lost.model)).abs().max()
    assert difference > 100 * tolerance, "a training that lost the second process's share must be told apart"


def steps_until_dead(accelerator):
    """Rank 0: sums with the other until it is gone."""
    for _ in range(1000):
        averaged([1.0], accelerator)


def die_early(accelerator):
    """The other: dies at its third sum."""
    for _ in range(3):
        averaged([1.0], accelerator)
    os._exit(3)


@pytest.mark.slow
@pytest.mark.system
def test_a_process_that_dies_ends_the_training_with_its_exit_code():
    config = tiny_config(accumulation=2, processes=2)
    with pytest.raises(CompalignError, match="training process 1 of 2: .* found exit code 3"):
        together(steps_until_dead, die_early, (), config=config, device="cpu")
    assert not torch.distributed.is_initialized()
    assert "WORLD_SIZE" not in os.environ


class DiesWhenCopied:
    """An argument that ends the process which unpickles it, as a script does that trains as soon as it is imported."""

    def __reduce__(self):
        return os._exit, (4,)


@pytest.mark.slow
@pytest.mark.system
def test_a_process_that_dies_before_it_meets_the_others_ends_the_training_at_once():
    config = tiny_config(accumulation=2, processes=2)
    started = time.monotonic()
    with pytest.raises(CompalignError, match="training process 1 of 2: .* found exit code 4"):
        together(steps_until_dead, die_early, (DiesWhenCopied(),), config=config, device="cpu")
    assert time.monotonic() - started < 60, "not the half hour that a meeting may take"


def test_more_processes_than_micro_batches_are_refused():
    with pytest.raises(InputError, match="'accumulation': expected a multiple of processes, found 3 and 2"):
        tiny_config(accumulation=3, processes=2)


def test_half_precision_on_a_cpu_is_refused_by_name(data):
    with pytest.raises(InputError, match="'precision': expected fp32 or bf16 on a CPU, found fp16"):
        train(tiny_config(precision="fp16"), data)
    with pytest.raises(InputError, match="one of fp32, bf16, fp16"):
        tiny_config(precision="int4")


@pytest.mark.slow
def test_bf16_learns_says_so_and_leaves_fp32_weights(data):
    settings = {"pretrain_steps": 30, "steps": 40, "validate_every": 20}
    full = train(tiny_config(**settings), data)
    half = train(tiny_config(**settings, precision="bf16"), data)
    curves = half.record["curves"]
    assert curves["pretrain"] != full.record["curves"]["pretrain"], "it computes with other numbers"
    for name in ("pretrain", "train"):
        assert sum(curves[name][-5:]) < 0.9 * sum(curves[name][:5]), name
    assert half.record["environment"]["precision"] == half.record["config"]["precision"] == "bf16"
    assert {value.dtype for value in half.model.parameters()} == {torch.float32}
    rewards = scored(half.model, ["a red square", "buy now", ""]).reward
    assert torch.isfinite(rewards).all() and rewards.std() > 1e-3


def test_training_stops_when_patience_runs_out(data, caplog):
    trained = train(tiny_config(lr=0.0, joint_weight=0.0, steps=50, patience=2), data)
    curves = trained.record["curves"]
    assert [entry["step"] for entry in curves["validation"]] == [1, 2, 3]
    assert len(curves["train"]) == 3
    assert trained.metrics["validation_accuracy"] == curves["best"]["accuracy"]


def test_a_training_that_stopped_early_and_was_killed_then_does_not_go_on(data, tmp_path):
    config = tiny_config(lr=0.0, joint_weight=0.0, steps=50, patience=2)
    first = train(config, data, checkpoints=tmp_path / "c")
    again = train(config, data, checkpoints=tmp_path / "c")
    assert len(again.record["curves"]["train"]) == 3
    assert again.record == first.record and again.metrics == first.metrics
    again.discard_checkpoints()
    assert not (tmp_path / "c").exists()


def test_the_baselines_are_those_from_before_stage_1(data):
    """Joint weights that move in stage 1 change the cosine; the figure beside the reward must be the earlier one."""
    config = tiny_config(pretrain_steps=20, steps=30, validate_every=30, lr=5e-3)
    trained = train(config, data)
    untouched = train(tiny_config(pretrain_steps=20, steps=1, lr=0.0, joint_weight=0.0), data)
    for name in ("cosine", "itm"):
        assert trained.before[name] == untouched.before[name]
    assert trained.metrics["baselines"]["cosine"] == untouched.metrics["baselines"]["cosine"]
    (image_id, caption), cosine = next(iter(trained.before["cosine"].items()))
    images = {image.image_id: image for split in ("validation", "test") for image in judged_images(data, split)}
    loader = loader_for(trained.model, data.shards, 1)
    with torch.inference_mode():
        states = states_of(trained.model, loader, [images[image_id].place])
        after = trained.model(states, [caption], torch.zeros(1, dtype=torch.int64)).cosine
    assert float(after) != pytest.approx(cosine, abs=1e-4)


def rated(data, rating_of):
    """The same data with a rating of every caption, on all criteria, by one labeler."""
    rows = [
        {"image_id": row["image_id"], "caption_id": row["caption_id"], "labeler": "l"}
        | dict.fromkeys(CRITERIA, rating_of(row))
        for row in data.captions.to_pylist()
    ]
    return type(data)(**{**vars(data), "ranks": pa.Table.from_pylist(rows, RANKS)})


def test_held_out_ratings_calibrate_the_model_and_mark_its_criteria(data):
    assert torch.isnan(train(tiny_config(), data).model.calibration).all()
    found = train(tiny_config(), rated(data, lambda row: 5.0 if row["caption_id"] == "a" else 1.0))
    assert torch.isfinite(found.model.calibration).all()
    assert found.model.trained_criteria.all()
    assert found.record["counts"]["train_rated_captions"] == 3 * 24
    fits = found.model.human_fit(torch.tensor([0.0, 1.0]))
    assert ((fits >= 0) & (fits <= 1)).all()


def test_the_record_names_data_seeds_code_and_where_values_come_from(data, trained):
    record = trained.record
    assert record["data_version"] == data_version(data)
    assert record["seeds"]["training"] == 7
    assert record["code_versions"] == {"training": CODE_VERSION}
    assert "unknown in the paper" in record["provenance_of_defaults"]["lr"]
    assert record["provenance_of_defaults"]["steps"] == "given"


def test_a_backbone_that_reads_the_crawl_gets_a_bounded_share_of_it_and_no_held_out_image(data, monkeypatch):
    given = []

    def learn(self, images, pairs, *, progress):
        given.append([place for place, _ in pairs])

    monkeypatch.setattr(TinyBlipReward, "reads_crawl", True)
    monkeypatch.setattr(TinyBlipReward, "learn_crawl", learn)
    judged = data.images.to_pylist()
    names = ("shard", "image_offset", "image_length")
    rows = [
        {
            **data.crawl.slice(0, 1).to_pylist()[0],
            **{name: row[name] for name in names},
            "image_sha256": row["image_id"],
        }
        for row in judged
    ]
    mixed = pa.concat_tables([data.crawl, pa.Table.from_pylist(rows, data.crawl.schema)])
    both = type(data)(**{**vars(data), "crawl": mixed})
    held_out = {tuple(row[name] for name in names) for row in judged if row["split"] != "train"}
    for limit, expected in ((1000, 24 + 24), (10, 10)):
        trained = train(tiny_config(pretrain_steps=0, joint_weight=0.0, crawl_pairs=limit), both)
        assert trained.record["counts"]["crawl_held_back"] == len(held_out) == 6
        assert len(given[-1]) == expected
        assert not held_out & set(given[-1])
    assert len(given) == 2
