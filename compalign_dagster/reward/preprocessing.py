"""From a decoded image to the square of pixels that a pretrained network was trained on.

The words are those of transformers' `preprocessor_config.json`, and the pixels those of its PIL image
processors; torchvision is not needed. What does not belong here: decoding, and the network.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compalign_dagster.errors import InputError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MOST_SIDE = 1024  # px
_MOST_ELONGATED = 64  # what a centre crop cannot see of a longer image is cut before it is resized


def squashed(side: int, kind: str = "BlipImageProcessor") -> dict[str, Any]:
    """Preprocessing as BLIP's own evaluation does it: the whole image, squashed to a square, bicubic."""
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": int(Image.Resampling.BICUBIC),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }


def understood(given: Mapping[str, Any], *, side: int = 0) -> dict[str, Any]:
    """A pretrained model's preprocessing in full, with another `side` in pixels where that is not 0.

    `InputError` for one that this module does not do.
    """
    how = squashed(side, str(given.get("image_processor_type", "unknown")))
    how |= {name: _numbers(name, given[name]) for name in ("image_mean", "image_std") if name in given}
    how["resample"] = given.get("resample", how["resample"])
    asked = given.get("size")
    whole = isinstance(asked, Mapping) and "shortest_edge" not in asked
    size, crop = _sides("size", asked), _sides("crop_size", given.get("crop_size", asked))
    if given.get("do_center_crop") and not whole:
        height = crop["height"]
        how |= {"do_center_crop": True, "crop_size": dict.fromkeys(("height", "width"), side or height)}
        how["size"] = {"shortest_edge": side * size["height"] // height if side else size["height"]}
    elif (isinstance(asked, Mapping) and not whole) or (given.get("do_center_crop") and crop != size):
        raise _cannot("size and crop_size", (asked, given.get("crop_size")))
    elif not side:
        how["size"] = size
    _check(given, how)
    return how


def side_of(how: Mapping[str, Any]) -> int:
    """Side of the square that comes out, px."""
    return how.get("crop_size", how["size"])["height"]


def scaled_to(how: Mapping[str, Any]) -> int:
    """What the image's shorter side is scaled to before anything is cut off, px."""
    return how["size"].get("shortest_edge", side_of(how))


def squared(image: Image.Image, how: Mapping[str, Any]) -> Tensor:
    """Pixels uint8 [3, S, S]."""
    image, resample, side = image.convert("RGB"), Image.Resampling(how["resample"]), side_of(how)
    if "crop_size" in how:
        image = _middle(image, [_MOST_ELONGATED * min(image.size)] * 2)
        width, height = image.size
        edge, short = how["size"]["shortest_edge"], min(width, height)
        image = _middle(image.resize((edge * width // short, edge * height // short), resample), [side, side])
    else:
        image = image.resize((side, side), resample)
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def per_channel(values: Sequence[float]) -> Tensor:
    """Mean or standard deviation, [1, 3, 1, 1]."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def _middle(image: Image.Image, most: Sequence[int]) -> Image.Image:
    """The middle of an image, at most that wide and high."""
    width, height = (min(found, limit) for found, limit in zip(image.size, most, strict=True))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _sides(name: str, value: Any) -> dict[str, int]:
    """Height and width of a square, from any of the ways to write a size; a shortest edge is both."""
    if isinstance(value, Mapping) and "shortest_edge" in value:
        value = value["shortest_edge"]
    found = dict(value) if isinstance(value, Mapping) else {"height": value, "width": value}
    side = found.get("height")
    if not isinstance(side, int) or not 1 <= side <= _MOST_SIDE or found.get("width") != side:
        raise _cannot(name, value)
    return {"height": side, "width": side}


def _numbers(name: str, value: Any) -> list[float]:
    if isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(part, int | float) for part in value):
        return list(value)
    raise _cannot(name, value)


def _check(given: Mapping[str, Any], how: Mapping[str, Any]) -> None:
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not given.get(name, True):
            raise _cannot(name, given[name])
    factor = given.get("rescale_factor", 1 / 255)
    if given.get("do_pad") or not isinstance(factor, int | float) or abs(factor - 1 / 255) > 1e-9:
        raise _cannot("rescale_factor and do_pad", (factor, given.get("do_pad")))
    if not all(0 < part < math.inf for part in how["image_std"]):
        raise _cannot("image_std", how["image_std"])
    if how["size"].get("shortest_edge", _MOST_SIDE) < side_of(how):
        raise _cannot("crop_size", how["crop_size"])
    if how["resample"] not in list(Image.Resampling):
        raise _cannot("resample", how["resample"])


def _cannot(name: str, found: object) -> InputError:
    return InputError(
        f"preprocessing, {name}",
        expected=f"a square of RGB pixels, at most {_MOST_SIDE} a side, resized, scaled and normalised",
        found=repr(found)[:100],
        remedy="Use a model whose preprocessor_config.json says so.",
    )
