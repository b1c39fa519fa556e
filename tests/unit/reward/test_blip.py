import json

import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.errors import InputError
from compalign_dagster.reward.blip import BlipReward, TinyBlipReward
from compalign_dagster.reward.folder import load_model, model_version, save_model
from compalign_dagster.scoring.engine import score_shard
from tests.support.tiny_reward import tiny_config, tiny_data

CAPTIONS = ["a red square", "buy now", "", "a blue square above a red square"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(data):
    torch.manual_seed(0)
    return TinyBlipReward.build(tiny_config(), data).eval()


@pytest.fixture
def source(tiny, tmp_path):
    """A folder as save_pretrained writes it."""
    tiny.blip.save_pretrained(tmp_path / "pretrained")
    tiny.tokenizer.save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


def built(source, **settings):
    return BlipReward.build(tiny_config(backbone="blip", model=str(source), **settings), None).eval()


def scored(model, captions=CAPTIONS):
    with torch.inference_mode():
        states = model.encode_images(model.prepare(Image.new("RGB", (20, 10), (200, 0, 0)))[None])
        return model(states, captions, torch.zeros(len(captions), dtype=torch.int64))


def test_heads_are_the_reward_and_one_score_for_each_criterion(tiny):
    tiny.trained_criteria[:] = torch.tensor([True, False, True, False])
    with torch.inference_mode():
        states = tiny.encode_images(tiny.prepare(Image.new("RGB", (20, 10), (200, 0, 0)))[None])
        heads = tiny.heads(states, CAPTIONS, torch.zeros(len(CAPTIONS), dtype=torch.int64))
    found = scored(tiny)
    assert heads.shape == (len(CAPTIONS), 5)
    assert torch.allclose(found.reward, heads[:, 0], atol=1e-6)
    assert torch.allclose(found.criteria[:, [0, 2]], heads[:, [1, 3]], atol=1e-6)
    assert torch.isnan(found.criteria[:, [1, 3]]).all()
    assert torch.isnan(found.label_free).all()
    assert torch.isfinite(found.itm).all()


def test_a_fresh_head_spreads_every_score_and_criteria_start_as_the_reward(tiny):
    heads = tiny.head(torch.randn(64, tiny.blip.config.text_config.hidden_size))
    assert (heads.std(0) > 0.01).all()
    assert torch.allclose(heads, heads[:, :1].expand(-1, 5), atol=1e-6)


def test_pretrained_weights_score_the_joint_baselines_alike(tiny, source):
    before, after = scored(tiny), scored(built(source))
    assert torch.allclose(before.cosine, after.cosine, atol=1e-6)
    assert torch.allclose(before.itm, after.itm, atol=1e-6)


def test_a_share_of_the_lower_layers_rests(source):
    model = built(source, frozen_share=1.0)
    groups = model.parameter_groups(1.0)
    trained = {id(value) for group in groups for value in group["params"]}
    for tower, layers in (
        (model.blip.vision_model, model.blip.vision_model.encoder.layers),
        (model.blip.text_encoder, model.blip.text_encoder.encoder.layer),
    ):
        resting = [*tower.embeddings.parameters(), *layers.parameters()]
        assert not trained & {id(value) for value in resting}
    assert {id(value) for value in model.head.parameters()} <= trained
    free = built(source)
    assert {id(value) for value in free.parameters()} == {
        id(value) for group in free.parameter_groups(0.0) for value in group["params"]
    }


def test_the_head_may_learn_at_a_rate_of_its_own(source):
    rest, head = built(source, head_lr=1e-3).parameter_groups(0.7)
    assert "lr" not in rest
    assert head["lr"] == 1e-3
    assert not {id(value) for value in rest["params"]} & {id(value) for value in head["params"]}
    assert len(built(source).parameter_groups(0.7)) == 1


def test_images_of_another_size_than_the_checkpoints_are_scored(tiny):
    assert tiny.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 17, 32)


def test_scoring_encodes_an_image_once_for_all_of_its_captions(tiny, data):
    encoded = []
    tiny.blip.vision_model.register_forward_hook(
        lambda module, args, kwargs, out: encoded.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    shard = data.shards["web/00000.tar"]
    pairs = index_shard(shard).pairs
    at = pairs.schema.get_field_index("caption_index")
    second = pairs.set_column(at, pairs.schema.field(at), pa.array([1] * len(pairs), pairs.schema.field(at).type))
    found = score_shard(tiny, "v", shard, pa.concat_tables([pairs, second]))
    assert len(found.scores) == 2 * len(pairs)
    assert sum(encoded) == len(pairs)


def test_a_caption_limit_above_the_networks_own_is_not_promised(source):
    asked = tiny_config(backbone="blip", model=str(source), max_caption_tokens=500)
    model = BlipReward.build(asked, None)
    assert model.config.max_caption_tokens == 12
    assert model.token_counts(["a red square " * 10]) == [32]


def test_a_tokenizer_that_pads_on_the_left_scores_as_any_other(tiny):
    expected = scored(tiny)
    tiny.tokenizer.padding_side = "left"
    torch.testing.assert_close(scored(tiny).reward, expected.reward, atol=0, rtol=0)


def test_a_version_does_not_depend_on_what_was_scored_before(tiny, tmp_path):
    first = model_version(save_model(tiny, tmp_path / "first"))
    scored(tiny)
    tiny.token_counts(CAPTIONS)
    assert model_version(save_model(tiny, tmp_path / "second")) == first
    again = load_model(tmp_path / "second")
    scored(again)
    assert model_version(save_model(again, tmp_path / "third")) == first


@pytest.mark.parametrize("part", ["blip/model.safetensors", "head.safetensors"])
def test_weights_that_do_not_fit_exactly_are_refused(tiny, tmp_path, part):
    folder = save_model(tiny, tmp_path / "model")
    weights = load_file(folder / part)
    for changed in ({"intruder": torch.zeros(1), **weights}, dict(list(weights.items())[1:])):
        save_file(changed, folder / part, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="fit"):
            TinyBlipReward.load(folder, tiny.config)
    save_file(weights, folder / part, metadata={"format": "pt"})
    assert torch.equal(scored(TinyBlipReward.load(folder, tiny.config).eval()).reward, scored(tiny).reward)


def test_pretrained_blip_that_lacks_weights_is_refused(source):
    weights = load_file(source / "model.safetensors")
    del weights["itm_head.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="itm_head.weight"):
        built(source)


def test_pretrained_blip_without_its_vocabulary_is_refused(source):
    for path in source.glob("*token*"):
        path.unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        built(source)


def test_pretrained_blip_that_asks_to_run_code_is_refused_before_anything_is_loaded(source, monkeypatch):
    described = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(described | {"auto_map": {"AutoModel": "evil.Model"}}))
    monkeypatch.setattr(
        "transformers.BlipForImageTextRetrieval.from_pretrained", lambda *args, **more: pytest.fail("loaded")
    )
    with pytest.raises(InputError, match=r"auto_map.*config\.json"):
        built(source)


def test_a_hub_id_without_a_commit_is_refused_before_anything_is_fetched():
    for revision in (None, "main"):
        with pytest.raises(InputError, match="pinned revision"):
            built("somebody/blip-itm", revision=revision)
    with pytest.raises(InputError, match="'model'"):
        BlipReward.build(tiny_config(backbone="blip"), None)
