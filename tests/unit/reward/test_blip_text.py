import copy

import pytest
import torch
from transformers import BlipConfig, BlipForImageTextRetrieval

from compalign_dagster.reward.blip_text import VisionAttention, cls_states

SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
WORDS, IMAGES, PATCHES = 50, 5, 17
OWNERS = {
    "several, in any order": [3, 0, 3, 3, 1, 0, 4, 3, 3],  # nobody looks at image 2
    "several, in order": [0, 0, 1, 1, 2, 2, 3, 3, 4],
    "one each": [0, 1, 2, 3, 4],
    "one each, shuffled": [4, 2, 0, 1, 3],
    "all of one": [1, 1, 1, 1],
}


def network(**text):
    torch.manual_seed(0)
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "sep_token_id", "pad_token_id"), 0)
    config = BlipConfig(
        vision_config=SHAPE | {"image_size": 32, "patch_size": 8, "initializer_range": 0.2},
        text_config=SHAPE
        | {"vocab_size": WORDS, "max_position_embeddings": 20, "initializer_range": 0.2}
        | {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
        | tokens
        | text,
        image_text_hidden_size=8,
        initializer_range=0.2,
    )
    return BlipForImageTextRetrieval(config).eval()


@pytest.fixture(scope="module")
def blip():
    return network()


def captions(count):
    """Ids, and a mask of captions of 1 to 12 tokens."""
    drawn = torch.Generator().manual_seed(1)
    ids = torch.randint(1, WORDS, (count, 12), generator=drawn)
    lengths = torch.randint(1, 13, (count,), generator=drawn)
    return ids, (torch.arange(12) < lengths[:, None]).long()


def image_states():
    return torch.randn(IMAGES, PATCHES, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(2))


def stock(blip, ids, mask, states=None):
    found = blip.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states)
    return found.last_hidden_state[:, 0]


@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)
def test_captions_get_the_states_that_transformers_gives_them_one_by_one(blip, owner):
    (ids, mask), images, owner = captions(len(owner)), image_states(), torch.tensor(owner)
    expected = stock(blip, ids, mask, images[owner])
    torch.testing.assert_close(cls_states(blip.text_encoder, ids, mask, images, owner), expected, atol=2e-5, rtol=0)
    # The planted bug "captions look at the wrong image" turns this red.
    wrong = cls_states(blip.text_encoder, ids, mask, images, (owner + 1) % IMAGES)
    assert (wrong - expected).abs().amax(1).min() > 1e-2


def test_captions_without_an_image_get_the_states_of_transformers(blip):
    ids, mask = captions(9)
    torch.testing.assert_close(cls_states(blip.text_encoder, ids, mask), stock(blip, ids, mask), atol=2e-5, rtol=0)


def test_gradients_are_those_of_transformers(blip):
    owner = torch.tensor(OWNERS["several, in any order"])
    ids, mask = captions(len(owner))
    found = []
    for ours in (False, True):
        model, images = copy.deepcopy(blip), image_states().requires_grad_()
        if ours:
            states = cls_states(model.text_encoder, ids, mask, images, owner)
        else:
            states = stock(model, ids, mask, images[owner])
        (states * torch.linspace(-1, 1, states.numel()).reshape(states.shape)).sum().backward()
        grads = {name: value.grad for name, value in model.text_encoder.named_parameters() if value.grad is not None}
        found.append(grads | {"images": images.grad})
    expected, given = found
    assert expected.keys() == given.keys()
    for name, value in expected.items():
        torch.testing.assert_close(given[name], value, atol=1e-4 * (1 + float(value.abs().max())), rtol=0, msg=name)


def test_half_precision_is_as_near_to_full_as_that_of_transformers(blip):
    owner = torch.tensor(OWNERS["several, in any order"])
    (ids, mask), images = captions(len(owner)), image_states()
    with torch.no_grad():
        full = stock(blip, ids, mask, images[owner])
        with torch.autocast("cpu", torch.bfloat16):
            theirs = stock(blip, ids, mask, images[owner])
            ours = cls_states(blip.text_encoder, ids, mask, images, owner)
    assert (ours - full).abs().mean() <= 1.5 * (theirs - full).abs().mean()


def test_keys_and_values_are_computed_once_for_each_image_that_is_looked_at(blip):
    owner = torch.tensor(OWNERS["several, in any order"])
    projected = []
    watched = [
        layer.crossattention.self.key.register_forward_hook(lambda module, args, out: projected.append(len(args[0])))
        for layer in blip.text_encoder.encoder.layer
    ]
    cls_states(blip.text_encoder, *captions(len(owner)), image_states(), owner)
    for hook in watched:
        hook.remove()
    assert sum(projected) == len(owner.unique()) * SHAPE["num_hidden_layers"]


def test_linear_layers_see_no_padding(blip):
    ids, mask = captions(9)
    seen = []
    hook = blip.text_encoder.encoder.layer[0].intermediate.register_forward_hook(
        lambda module, args, out: seen.append(args[0].shape[:-1].numel())
    )
    cls_states(blip.text_encoder, ids, mask)
    hook.remove()
    assert seen == [int(mask.sum())] != [mask.numel()]


def test_attention_drops_while_it_trains_and_only_then():
    blip = network(attention_probs_dropout_prob=0.5)
    (ids, mask), images, owner = captions(4), image_states(), torch.arange(4)

    def both():
        return [cls_states(blip.text_encoder, ids, mask, images, owner) for _ in range(2)]

    first, second = both()
    assert torch.equal(first, second)
    blip.train()
    first, second = both()
    assert not torch.allclose(first, second)


def test_the_vision_tower_gives_the_states_of_transformers_under_the_same_names(blip):
    ours = copy.deepcopy(blip.vision_model)
    for layer in ours.encoder.layers:
        layer.self_attn = VisionAttention(layer.self_attn)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    expected = blip.vision_model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(ours(pixel_values=pixels).last_hidden_state, expected, atol=2e-5, rtol=0)
    assert list(ours.state_dict()) == list(blip.vision_model.state_dict())
