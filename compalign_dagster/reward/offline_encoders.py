"""The frozen encoders with a memory: what one process of a run computed is not computed again.

What belongs here: one shared pair of encoders per process, and features by content. What does not:
the networks (`offline_features.py`), how vectors are kept (`offline_memory.py`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compalign_dagster.errors import InputError
from compalign_dagster.reward.offline_features import (
    CODE_VERSION,
    IMAGE_FEATURES,
    IMAGE_PX,
    TEXT_FEATURES,
    ImageNet,
    TextNet,
    pixels,
    weights,
)
from compalign_dagster.reward.offline_memory import FeatureMemory
from compalign_dagster.versions import digest_json

MAX_TOKENS = 128
_IMAGE_BATCH = 32

_folder: Path | None = None


class Encoders:
    """Both frozen networks, loaded when first needed, and the features they gave so far."""

    def __init__(self, max_tokens: int = MAX_TOKENS, *, folder: Path | None = None) -> None:
        *images, text, vocabulary = weights()
        self.max_tokens = max_tokens
        self._image_net: ImageNet | None = None
        self._text_net: TextNet | None = None
        image_name = digest_json([CODE_VERSION, *(item.sha256 for item in images)])[:12]
        self.image_memory = FeatureMemory(f"image-{image_name}", IMAGE_FEATURES, folder=folder)
        text_name = digest_json([CODE_VERSION, text.sha256, vocabulary.sha256, max_tokens])[:12]
        self.text_memory = FeatureMemory(f"text-{text_name}", TEXT_FEATURES, folder=folder)

    @property
    def text_net(self) -> TextNet:
        """The caption encoder."""
        if self._text_net is None:
            self._text_net = TextNet(self.max_tokens)
        return self._text_net

    def images(self, batch: Tensor) -> Tensor:
        """Pixels uint8 [B, 3, S, S] to float32 [B, 2560], on the batch's device."""
        keys = [_key(item.numpy().tobytes(), batch.device) for item in batch.cpu()]

        def compute(places: list[int]) -> np.ndarray:
            if self._image_net is None:
                self._image_net = ImageNet()
            with torch.autocast(batch.device.type, enabled=False):  # what is kept serves every precision
                return self._image_net.to(batch.device)(batch[places]).cpu().numpy()

        return torch.from_numpy(self.image_memory.lookup(keys, compute)).to(batch.device)

    def captions(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Unit vectors float32 [N, 384] on `device`."""
        keys = [_key(text.encode("utf-8", "surrogatepass"), torch.device(device)) for text in captions]

        def compute(places: list[int]) -> np.ndarray:
            with torch.autocast(torch.device(device).type, enabled=False):
                return self.text_net.to(device)([captions[place] for place in places]).cpu().numpy()

        return torch.from_numpy(self.text_memory.lookup(keys, compute)).to(device)


def _key(content: bytes, device: torch.device) -> bytes:
    """32 bytes: another kind of device rounds otherwise, and its features are not the CPU's."""
    return hashlib.sha256(content + (b"" if device.type == "cpu" else device.type.encode())).digest()


def remember_in(folder: Path | None) -> None:
    """Keep features in `folder` too, for other processes; None keeps them in memory only.

    A feature depends on its image or caption and the kind of device alone, so that nothing but time changes by this.
    Takes effect for encoders made afterwards. Some 10 kB an image and 1.5 kB a caption; of either at most about
    512 MiB. `InputError` where nothing can be written.
    """
    global _folder
    if folder == _folder:
        return
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"folder of features {folder}",
            expected="a folder of this machine that can be written",
            found=error.strerror or str(error),
            remedy="Name another one, or none to keep features in memory.",
        ) from error
    _folder = folder
    encoders.cache_clear()


@cache
def encoders(max_tokens: int) -> Encoders:
    """The encoders of this process."""
    return Encoders(max_tokens, folder=_folder)


def frozen_features(images: Iterable[Image.Image]) -> np.ndarray:
    """Frozen features of decoded images, float32 [N, 2560], in their order."""
    found, waiting = [], []
    for image in images:
        waiting.append(pixels(image, IMAGE_PX))
        if len(waiting) == _IMAGE_BATCH:
            found.append(encoders(MAX_TOKENS).images(torch.stack(waiting)).numpy())
            waiting = []
    if waiting:
        found.append(encoders(MAX_TOKENS).images(torch.stack(waiting)).numpy())
    return np.concatenate(found) if found else np.empty((0, IMAGE_FEATURES), dtype=np.float32)


def text_features(captions: Sequence[str]) -> np.ndarray:
    """Frozen unit vectors of captions, float32 [N, 384], in their order."""
    return encoders(MAX_TOKENS).captions(captions).numpy()
