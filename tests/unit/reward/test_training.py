import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.reward.blip import BlipReward, TinyBlipReward
from compalign_dagster.reward.data import judged_images
from compalign_dagster.reward.folder import load_model, model_version, save_model
from compalign_dagster.reward.training import train
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


def test_the_version_ignores_the_record_and_nothing_else(folder):
    version = model_version(folder)
    assert len(version) == 64
    (folder / "record.json").unlink()
    (folder / "metrics.json").write_text("{}")
    assert model_version(folder) == version
    preprocessing = folder / "preprocessor_config.json"
    preprocessing.write_text(preprocessing.read_text().replace("16", "32"))
    assert model_version(folder) != version


def test_a_model_folder_holds_no_pickle(folder):
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


@pytest.mark.parametrize("lost", ["reward.json", "head.safetensors", "blip/model.safetensors", "tokenizer"])
def test_a_model_folder_that_lacks_a_part_is_an_input_error(folder, lost):
    path = folder / lost
    if path.is_dir():
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
    else:
        path.unlink()
    with pytest.raises(InputError, match=str(folder)):
        load_model(folder)


def test_a_missing_model_folder_is_an_input_error(tmp_path):
    for call in (load_model, model_version):
        with pytest.raises(InputError, match="no such folder"):
            call(tmp_path / "nowhere")


def test_a_model_is_never_saved_over_other_files(trained, folder):
    with pytest.raises(InputError, match="new or empty"):
        save_model(trained.model, folder)


def test_an_unreadable_description_is_an_input_error(folder):
    for text in ("{", "[]", '{"format": 99}'):
        (folder / "reward.json").write_text(text)
        with pytest.raises(InputError, match="reward.json"):
            load_model(folder)


def test_a_constant_head_is_refused_before_training(data, monkeypatch):
    def constant(self, image_states, captions, image_index):
        return torch.zeros(len(captions)) + self.head.layers[0].bias.sum() * 0

    monkeypatch.setattr(BlipReward, "rewards", constant)
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


def test_pretraining_without_a_crawl_is_an_input_error_and_without_pretraining_is_fine(data):
    empty = type(data)(**{**vars(data), "crawl": data.crawl.slice(0, 0)})
    with pytest.raises(InputError, match="crawl pairs"):
        train(tiny_config(), empty)
    assert train(tiny_config(pretrain_steps=0, joint_weight=0.0), empty).record["counts"]["train_images"] == 24


def test_captions_beyond_the_limit_are_counted(data):
    trained = train(tiny_config(max_caption_tokens=4), data)
    assert trained.record["counts"]["crawl_captions_over_long"] == 24


def test_each_image_is_encoded_once_for_all_of_its_captions(trained, monkeypatch):
    from compalign_dagster.reward.batches import flatten
    from compalign_dagster.reward.data import JudgedImage

    image = JudgedImage("i", ("s", 0, 1), ("a", "b", "c"), (0,), (1,), 0, (0,))
    batch = flatten([image, image], 1)
    seen = []
    vision = trained.model.blip.vision_model
    hook = vision.register_forward_hook(lambda module, args, kwargs, out: seen.append(kwargs), with_kwargs=True)
    with torch.inference_mode():
        states = trained.model.encode_images(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
        trained.model(states, batch.captions, batch.image_index)
    hook.remove()
    assert [entry["pixel_values"].shape[0] for entry in seen] == [2]


def test_a_hub_id_without_a_revision_is_refused_before_anything_is_fetched(data):
    with pytest.raises(InputError, match="pinned revision"):
        train(tiny_config(backbone="blip", model="somebody/blip-itm", pretrain_steps=0), data)
    with pytest.raises(InputError, match="'model'"):
        train(tiny_config(backbone="blip", pretrain_steps=0), data)


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


def test_pretrained_blip_that_lacks_weights_is_refused(data, trained, tmp_path):
    from safetensors.torch import load_file, save_file

    source = tmp_path / "pretrained"
    trained.model.blip.save_pretrained(source)
    trained.model.tokenizer.save_pretrained(source)
    weights = load_file(source / "model.safetensors")
    del weights["itm_head.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="itm_head.weight"):
        train(tiny_config(backbone="blip", model=str(source), pretrain_steps=0), data)


def test_images_of_another_size_than_the_checkpoints_are_scored(trained):
    model = trained.model
    states = model.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert states.shape == (1, 17, 32)


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
    outputs = scored(model, ["a red square", "a green square"], colour=(220, 20, 20))
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
