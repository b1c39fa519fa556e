import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil

from compalign_dagster.errors import InputError
from compalign_dagster.reward.preprocessing import per_channel, side_of, squared, squashed, understood

SHAPES = [(40, 30), (31, 64), (33, 33), (200, 17), (5, 7)]


def picture(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24}),
        SiglipImageProcessorPil(size={"height": 24, "width": 24}),
        BlipImageProcessorPil(size={"height": 24, "width": 24}),
    ],
    ids=["clip", "clip-cropped", "siglip", "blip"],
)
def test_pixels_are_those_of_transformers(processor, shape):
    how = understood(processor.to_dict())
    found = squared(picture(*shape), how)
    assert found.shape == (3, 24, 24)
    assert found.dtype == torch.uint8
    scaled = (found[None].float() / 255 - per_channel(how["image_mean"])) / per_channel(how["image_std"])
    expected = processor(picture(*shape), return_tensors="pt")["pixel_values"]
    assert torch.allclose(scaled, expected, atol=1e-5)


def test_blip_squashes_the_whole_image():
    assert understood(BlipImageProcessorPil(size={"height": 24, "width": 24}).to_dict()) | {
        "image_processor_type": "BlipImageProcessor"
    } == squashed(24)


def test_another_side_keeps_the_share_that_a_crop_sees():
    clip = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24}).to_dict()
    how = understood(clip, side=48)
    assert (how["size"], side_of(how)) == ({"shortest_edge": 64}, 48)
    assert understood(how) == how
    assert squared(picture(100, 90), how).shape == (3, 48, 48)


def test_sizes_may_be_written_as_plain_numbers():
    how = understood({"size": 24, "crop_size": 24, "do_center_crop": True})
    assert how["size"] == {"shortest_edge": 24}
    assert squared(picture(30, 40), how).shape == (3, 24, 24)


def test_a_square_that_is_squashed_and_cropped_to_itself_is_squashed():
    how = understood({"size": {"height": 24, "width": 24}, "crop_size": 24, "do_center_crop": True})
    assert "crop_size" not in how
    assert how["size"] == {"height": 24, "width": 24}


def test_an_endless_ribbon_is_cut_before_it_is_enlarged():
    how = understood({"size": 224, "crop_size": 224, "do_center_crop": True})
    ribbon = Image.new("L", (60_000, 1), 7)
    before = Image.Image.resize
    sizes = []
    try:
        Image.Image.resize = lambda self, size, *more: sizes.append(size) or before(self, size, *more)
        assert squared(ribbon, how).shape == (3, 224, 224)
    finally:
        Image.Image.resize = before
    assert sizes == [(64 * 224, 224)], "60,000 pixels enlarged 224 times would be 40 GB"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"size": "large"},
        {"size": {"height": 24, "width": 12}},
        {"size": {"height": 0, "width": 0}},
        {"size": {"shortest_edge": 24}},
        {"size": {"height": 100_000, "width": 100_000}},
        {"size": 24, "do_rescale": False},
        {"size": 24, "rescale_factor": 1.0},
        {"size": 24, "rescale_factor": None},
        {"size": 24, "image_std": [0.5, float("nan"), 0.5]},
        {"size": 24, "do_pad": True},
        {"size": 24, "image_mean": [0.5]},
        {"size": 24, "image_mean": 0.5},
        {"size": 24, "image_std": [0.5, 0.5, 0]},
        {"size": {"height": "24", "width": "24"}},
        {"size": {"height": 32, "width": 32}, "crop_size": 24, "do_center_crop": True},
        {"size": {"shortest_edge": None}, "do_center_crop": True},
        {"size": 24, "image_std": ["a", "b", "c"]},
        {"size": 24, "resample": 99},
        {"size": 16, "crop_size": 24, "do_center_crop": True},
    ],
)
def test_what_is_not_done_is_refused_by_name(given):
    with pytest.raises(InputError, match="preprocessing, "):
        understood(given)
