import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPModel, Siglip2ImageProcessorPil

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.data import judged_images
from compalign_dagster.reward.dual import DualHead, DualReward
from compalign_dagster.reward.folder import load_model, model_version, save_model
from compalign_dagster.reward.joint import contrastive, same, sigmoid_contrast
from compalign_dagster.reward.loading import loader_for
from compalign_dagster.reward.objective import Objective
from compalign_dagster.reward.training import train
from compalign_dagster.scoring.engine import score_shard
from tests.support.tiny_dual import KINDS, TEXT_LIMIT, tiny_dual
from tests.support.tiny_reward import NAMES, tiny_data

CAPTIONS = [f"a {colour} square" for colour in NAMES] + ["Buy now!", "", "a red, RED square"]


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory):
    return tiny_dual(request.param, tmp_path_factory.mktemp(request.param), CAPTIONS * 20)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_dual("clip", tmp_path_factory.mktemp("clip"), CAPTIONS * 20)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"), rated=True)


def built(source, **settings):
    torch.manual_seed(0)
    config = reward_config({"backbone": "dual", "model": str(source), "batch_images": 8, **settings})
    return DualReward.build(config, None).eval()


def images_of(model, count=3):
    noise = np.random.default_rng(0).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)
    return torch.stack([model.prepare(Image.fromarray(pixels)) for pixels in noise])


def scored(model, captions=CAPTIONS, image=0):
    with torch.inference_mode():
        states = model.encode_images(images_of(model))
        return model(states, captions, torch.full((len(captions),), image))


def test_the_cosine_is_the_networks_own(source):
    model = built(source)
    states = model.encode_images(images_of(model))
    captions = CAPTIONS[:4]
    clip = model.kind == "clip"
    padding = {"padding": True} if clip else {"padding": "max_length", "max_length": TEXT_LIMIT}
    tokens = model.tokenizer(captions, return_tensors="pt", **padding)
    pixels = (images_of(model).float() / 255 - 0.5) / 0.5
    given = {"pixel_values": pixels}
    if model.kind == "siglip2":
        pictures = [Image.fromarray(item.permute(1, 2, 0).numpy()) for item in images_of(model)]
        given = dict(Siglip2ImageProcessorPil.from_pretrained(source)(pictures, return_tensors="pt"))
    mask = {"attention_mask": tokens["attention_mask"]} if clip else {}
    with torch.inference_mode():
        logits = model.network(input_ids=tokens["input_ids"], **given, **mask).logits_per_image
        found = model(states, captions * 3, torch.arange(3).repeat_interleave(4)).cosine.reshape(3, 4)
    bias = 0 if clip else model.network.logit_bias
    expected = (logits - bias) / model.network.logit_scale.exp()
    assert torch.allclose(found, expected.detach(), atol=1e-5)


def test_what_the_model_lacks_is_nan_and_the_rest_is_finite(source):
    found = scored(built(source))
    assert torch.isfinite(found.reward).all()
    assert torch.isfinite(found.cosine).all()
    assert torch.isnan(torch.cat([found.itm, found.label_free, found.criteria.flatten()])).all()
    model = built(source)
    model.trained_criteria[1] = True
    assert torch.isfinite(scored(model).criteria).all(0).tolist() == [False, True, False, False]


def test_a_caption_scores_the_same_alone_and_among_others(source):
    model = built(source)
    among = scored(model)
    for at, caption in enumerate(CAPTIONS):
        assert float(scored(model, [caption]).reward) == pytest.approx(float(among.reward[at]), abs=1e-4), caption


def test_scores_belong_to_the_image_they_are_asked_of(source):
    model = built(source)
    with torch.inference_mode():
        states = model.encode_images(images_of(model))
        mixed = model(states, CAPTIONS[:3], torch.tensor([2, 0, 1])).reward
    alone = [float(scored(model, [CAPTIONS[at]], image).reward) for at, image in enumerate((2, 0, 1))]
    assert mixed.tolist() == pytest.approx(alone, abs=1e-4)


def test_case_and_punctuation_that_siglip_never_saw_change_nothing(tmp_path):
    model = built(tiny_dual("siglip", tmp_path, CAPTIONS * 20))
    plain, loud = scored(model, ["a red square"]), scored(model, ["A RED,  square!"])
    assert float(plain.reward) == float(loud.reward)
    assert model._plain(["It's  ONE-two."]) == ["its onetwo"]


def test_long_captions_are_cut_at_the_networks_limit_and_counted(source):
    model = built(source)
    assert model.config.max_caption_tokens == TEXT_LIMIT, "the record says what holds, not what was asked for"
    long = " ".join(["red square"] * 20)
    assert model.token_counts([long, "a red square"]) == [
        len(model.tokenizer(long)["input_ids"]),
        5 - (model.kind != "clip"),
    ]
    assert torch.isfinite(scored(model, [long]).reward).all()
    cut = built(source, max_caption_tokens=4)
    assert float(scored(cut, ["a red square"]).cosine) == float(scored(cut, ["a red square of no colour"]).cosine)


def test_a_saved_model_scores_as_before_bit_for_bit(source, tmp_path):
    model = built(source)
    model.trained_criteria[:2] = True
    model.calibration[:] = torch.tensor([1.5, -0.25])
    folder = save_model(model, tmp_path / "model")
    again = load_model(folder)
    before, after = scored(model), scored(again)
    for name in ("reward", "criteria", "cosine"):
        assert torch.equal(getattr(before, name).nan_to_num(9), getattr(after, name).nan_to_num(9)), name
    assert again.config == model.config
    assert torch.allclose(again.human_fit(after.reward), torch.sigmoid(1.5 * before.reward - 0.25))
    assert model_version(save_model(again, tmp_path / "again")) == model_version(folder)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("change", ["lost", "unexpected"])
def test_a_folder_whose_weights_do_not_fit_exactly_is_refused(clip, tmp_path, change):
    folder = save_model(built(clip), tmp_path / "model")
    for part in ("network/model.safetensors", "head.safetensors"):
        weights = load_file(folder / part)
        changed = {"intruder": torch.zeros(1), **weights} if change == "unexpected" else dict(list(weights.items())[1:])
        save_file(changed, folder / part, metadata={"format": "pt"})
        with pytest.raises((InputError, ValueError), match="fit"):
            DualReward.load(folder, built(clip).config)
        save_file(weights, folder / part, metadata={"format": "pt"})
    assert DualReward.load(folder, built(clip).config).name == "dual"


def test_the_planted_bug_of_leaving_strictness_to_transformers_is_noticed(clip, tmp_path):
    folder = save_model(built(clip), tmp_path / "model") / "network"
    weights = load_file(folder / "model.safetensors")
    save_file({"intruder": torch.zeros(1), **weights}, folder / "model.safetensors", metadata={"format": "pt"})
    assert CLIPModel.from_pretrained(folder).config.model_type == "clip", "it only warns"


def test_a_frozen_pair_of_towers_is_read_once_and_only_the_head_trains(source, data):
    model = built(source, frozen_share=1.0, mismatches=2)
    assert model.images_are_frozen
    groups = model.parameter_groups(1.0)
    assert [group.get("lr") for group in groups] == [1e-3]
    assert sum(value.numel() for value in groups[0]["params"]) == sum(
        value.numel() for value in model.head.parameters()
    )
    assert not any(value.requires_grad for value in model.network.parameters())
    encoded = counting_images(model)
    train = judged_images(data, "train")[:8]
    objective = Objective(model, loader_for(model, data.shards, 16), train)
    for _ in range(3):
        objective(train).backward()
    assert sum(encoded) == len(train)


def counting_images(model):
    seen = []
    tower = model.network.vision_model
    tower.register_forward_hook(lambda module, args, kwargs, out: seen.append(len(out.pooler_output)), with_kwargs=True)
    return seen


def test_a_part_of_the_towers_trains_and_each_image_is_encoded_once_a_step(source, data):
    model = built(source, frozen_share=0.5)
    assert not model.images_are_frozen
    towers, head = model.parameter_groups(0.5)
    assert head["lr"] == 1e-3
    assert "lr" not in towers
    encoded = counting_images(model)
    train = judged_images(data, "train")[:8]
    Objective(model.train(), loader_for(model, data.shards, 16), train)(train).backward()
    assert encoded == [8]
    for tower in (model.network.vision_model, model.network.text_model):
        first, last = tower.encoder.layers
        assert all(value.grad is None for value in (*tower.embeddings.parameters(), *first.parameters()))
        assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in last.parameters())


def test_scoring_encodes_an_image_once_for_all_of_its_captions(clip, data):
    model = built(clip)
    encoded = counting_images(model)
    shard = data.shards["web/00000.tar"]
    pairs = index_shard(shard).pairs
    at = pairs.schema.get_field_index("caption_index")
    second = pairs.set_column(at, pairs.schema.field(at), pa.array([1] * len(pairs), pairs.schema.field(at).type))
    found = score_shard(model, "v", shard, pa.concat_tables([pairs, second]))
    assert len(found.scores) == 2 * len(pairs)
    assert sum(encoded) == len(pairs)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_forward_pass_in_bf16_costs_much_the_same_and_its_gradients_are_finite(source, data, share):
    model = built(source, frozen_share=share)
    groups = model.parameter_groups(share)
    train = judged_images(data, "train")[:8]
    objective = Objective(model.train(), loader_for(model, data.shards, 16), train)
    full = fixed_loss(objective, train)
    with torch.autocast("cpu", torch.bfloat16):
        half = fixed_loss(objective, train)
    assert float(half.detach()) == pytest.approx(float(full.detach()), rel=0.05)
    half.backward()
    assert all(
        torch.isfinite(value.grad).all() for group in groups for value in group["params"] if value.grad is not None
    )


def fixed_loss(objective, images):
    torch.manual_seed(1)
    return objective(images)


def test_training_the_head_brings_the_right_captions_up(source, data):
    model = built(source, frozen_share=1.0, anchor_weight=0.0, head_lr=1e-2)
    train = judged_images(data, "train")
    objective = Objective(model.train(), loader_for(model, data.shards, 16), train)
    objective.check_spread(train[:8])
    optimiser = torch.optim.AdamW(model.parameter_groups(1.0), lr=1e-5)
    before = objective.validate(train).preference
    model.train()
    for step in range(60):
        optimiser.zero_grad()
        objective(train[step % 3 * 8 : step % 3 * 8 + 8]).backward()
        optimiser.step()
    assert objective.validate(train).preference < 0.6 * before


def test_pretraining_brings_an_image_and_its_caption_together(source):
    model = built(source, frozen_share=0.0, pretrain_steps=1).train()
    states, captions = images_of(model), CAPTIONS[:3]
    optimiser = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=3e-3)
    curve = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = model.joint_loss(model.encode_images(states), captions, [None, "a red circle", None])
        loss.backward()
        optimiser.step()
        curve.append(float(loss.detach()))
    assert curve[-1] < 0.7 * curve[0]
    with torch.inference_mode():
        model.eval()
        found = model(model.encode_images(states), captions * 3, torch.arange(3).repeat_interleave(3)).cosine
    assert found.reshape(3, 3).argmax(1).tolist() == [0, 1, 2]


def test_a_training_from_end_to_end_brings_a_model_that_can_be_kept(clip, data, tmp_path):
    settings = {"steps": 4, "validate_every": 2, "batch_images": 8, "threads": 1}
    config = reward_config({"backbone": "dual", "model": str(clip), **settings})
    trained = train(config, data)
    folder = save_model(trained.model, tmp_path / "model", metrics=trained.metrics, record=trained.record)
    assert load_model(folder).trained_criteria.tolist() == [True, True, True, False]
    assert trained.record["config"]["max_caption_tokens"] == TEXT_LIMIT
    assert trained.metrics["preference_accuracy"]["n"] > 0
    again = train(config, data)
    assert model_version(save_model(again.model, tmp_path / "again")) == model_version(folder)


def test_captions_that_read_alike_are_no_negatives_in_either_loss():
    alike = same(["a", "b", "A"])
    logits = torch.zeros(3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(sigmoid_contrast(logits, alike), logits)
    assert gradient[0, 2] == gradient[2, 0] == 0
    assert gradient[0, 1] > 0 > gradient[0, 0]
    careless = torch.eye(3, dtype=torch.bool)
    assert torch.autograd.grad(sigmoid_contrast(logits, careless), logits)[0][0, 2] > 0
    (gradient,) = torch.autograd.grad(contrastive(logits, alike), logits)
    assert gradient[0, 2] == gradient[0, 0] < 0 < gradient[0, 1]


def test_both_losses_are_those_of_the_papers():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, generator=generator)
    targets = torch.arange(4)
    clip = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    assert float(contrastive(logits, torch.eye(4, dtype=torch.bool))) == pytest.approx(float(clip))
    signs = 2 * torch.eye(4) - 1
    siglip = -F.logsigmoid(signs * logits).sum() / 4
    assert float(sigmoid_contrast(logits, torch.eye(4, dtype=torch.bool))) == pytest.approx(float(siglip))


def test_captions_without_an_image_are_negatives_of_images_alone():
    logits = torch.zeros(2, 3, requires_grad=True)
    alike = same(["a", "b", "c"])[:2]
    for loss in (contrastive, sigmoid_contrast):
        (gradient,) = torch.autograd.grad(loss(logits, alike), logits)
        assert (gradient[:, 2] > 0).all()
        assert (gradient.diagonal() < 0).all()


def test_the_head_reads_how_image_and_caption_agree_and_neither_alone():
    torch.manual_seed(0)
    head = DualHead(8, 0.2)
    image, caption = F.normalize(torch.randn(2, 4, 8), dim=-1)
    there, back = head(image, caption), head(caption, image)
    assert torch.allclose(there, back, atol=1e-5), "one that read the caption alone would not be symmetric"
    assert not torch.allclose(there, head(image, caption.flip(0)))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"x": [{"trust_remote_code": True}]}, "trust_remote_code"),
        ({"attn_implementation": "evil/kernel"}, "attn_implementation"),
        ({"text_config": {"_attn_implementation": {"": "evil/kernel@main:run"}}}, "_attn_implementation"),
    ],
)
def test_a_model_that_asks_to_run_its_own_code_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, name, asked, key
):
    source = tiny_dual("clip", tmp_path, CAPTIONS)
    described = json.loads((source / name).read_text())
    (source / name).write_text(json.dumps(described | asked))
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("transformers.CLIPModel.from_pretrained", lambda *args, **more: pytest.fail("loaded"))
    with pytest.raises(InputError, match=f"{key}.*{name}"):
        built(source)
    assert not (tmp_path / "ran").exists()


def test_the_planted_bug_of_not_looking_at_descriptions_is_noticed(tmp_path, monkeypatch):
    source = tiny_dual("clip", tmp_path, CAPTIONS)
    described = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(described | {"auto_map": {"AutoModel": "evil.M"}}))
    monkeypatch.setattr("compalign_dagster.reward.pretrained.asks_for_code", lambda key, value: False)
    assert built(source).name == "dual"


def test_a_pickle_in_place_of_safetensors_is_refused(tmp_path):
    source = tiny_dual("clip", tmp_path, CAPTIONS)
    (source / "model.safetensors").unlink()
    torch.save({}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        built(source)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"model_type": "bert"}, "model_type 'bert'"),
        ("config.json", {"model_type": ["clip"]}, "model_type"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize"),
        ("preprocessor_config.json", {"crop_size": {"height": 16, "width": 8}}, "crop_size"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 100_000}}, "size"),
    ],
)
def test_a_model_of_another_kind_is_refused_and_named(tmp_path, name, change, said):
    source = tiny_dual("clip", tmp_path, CAPTIONS)
    described = json.loads((source / name).read_text())
    (source / name).write_text(json.dumps(described | change))
    with pytest.raises(InputError, match=said):
        built(source)


@pytest.mark.parametrize("lost", ["model.safetensors", "preprocessor_config.json", "tokenizer.json", "config.json"])
def test_a_model_that_lacks_a_part_is_refused(source, tmp_path, lost):
    copy = shutil.copytree(source, tmp_path / "copy")
    (copy / lost).unlink()
    if lost == "preprocessor_config.json" and "siglip2" in str(source):
        pytest.skip("a SigLIP 2 with free aspect ratios says enough in config.json")
    with pytest.raises(InputError):
        built(copy)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_description_that_cannot_be_read_is_refused(tmp_path, text):
    source = tiny_dual("clip", tmp_path, CAPTIONS)
    (source / "config.json").write_text(text)
    with pytest.raises(InputError, match="pretrained model"):
        built(source)


@pytest.mark.parametrize("revision", [None, "main", "abc", "A" * 40])
def test_a_hub_id_without_a_commit_is_refused_before_anything_is_fetched(revision):
    with pytest.raises(InputError, match="pinned revision"):
        built("somebody/clip", revision=revision)


_FROM_THE_HUB = """
import sys, torch
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.dual import DualReward
from compalign_dagster.errors import InputError
torch.manual_seed(0)
for revision in sys.argv[1:]:
    config = reward_config({"backbone": "dual", "model": "somebody/clip", "revision": revision})
    try:
        model = DualReward.build(config, None)
        print(model.provenance()["revision"], float(model.network.logit_scale.detach()))
    except InputError as error:
        print("refused:", error.found)
"""


@pytest.mark.slow
def test_a_hub_id_is_read_at_its_commit_and_refused_where_the_hub_does_not_answer(clip, tmp_path):
    commit, other = "1" * 40, "2" * 40
    shutil.copytree(clip, tmp_path / "models--somebody--clip" / "snapshots" / commit)
    done = subprocess.run(
        [sys.executable, "-c", _FROM_THE_HUB, commit, other],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read, refused = done.stdout.splitlines()
    assert read.split() == [commit, str(float(built(clip).network.logit_scale.detach()))]
    assert refused.startswith("refused: We couldn't connect")


def test_a_larger_image_is_asked_for_by_configuration(source):
    model = built(source, image_size=32)
    assert images_of(model).shape == (3, 3, 32, 32)
    assert model.config.image_size == 32
    assert torch.isfinite(scored(model).reward).all()


def test_half_precision_weights_are_read_in_full(clip, tmp_path):
    CLIPModel.from_pretrained(clip).half().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    assert {value.dtype for value in built(tmp_path).network.parameters()} == {torch.float32}


def test_the_configuration_of_a_built_model_survives_its_dictionary(source):
    config = built(source).config
    assert reward_config(config.as_dict()) == config
    assert replace(config, model="x") != config
