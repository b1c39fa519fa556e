"""A reward that reads image and caption freely: the frozen features of the offline backbone, a tower each, our head.

What belongs here: a network whose reward may be anything of an image, such as how likely its captions are to be
liked. It exists to show what the loss must prevent and is no product: the backbones of `compalign_dagster.reward`
that see agreements alone are built so that they need less of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from compalign_dagster.reward import config as settings
from compalign_dagster.reward import model as backbones
from compalign_dagster.reward.config import OURS, Default, RewardConfig
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.head import RewardHead
from compalign_dagster.reward.joint import contrastive, same
from compalign_dagster.reward.model import HEADS, Outputs, RewardModel
from compalign_dagster.reward.offline_encoders import Encoders, encoders
from compalign_dagster.reward.offline_features import IMAGE_FEATURES, TEXT_FEATURES, pixels
from compalign_dagster.reward.uncertainty import Posterior

_WEIGHTS = "model.safetensors"
_TOWERS = ("image.", "caption.")
DEFAULTS = {
    "image_size": Default(260, "EfficientNet-Lite2's own"),
    "max_caption_tokens": Default(128, OURS),
    "hidden_size": Default(128, OURS),
    "dropout": Default(0.3, OURS),
    "lr": Default(1e-3, OURS),
    "steps": Default(120, OURS),
    "validate_every": Default(20, OURS),
    "threads": Default(1, OURS),
    # A sentence vector hardly sees one changed word, and every near miss is a caption to encode.
    "hard_negatives": Default(0.0, OURS),
}


class FreeReward(RewardModel):
    """An MLP over [image, caption, product] of two small towers. `encode_images` gives frozen features, [B, 1, 2560].

    `config.model` is a folder that `save` wrote after stage 0: its towers are taken, its head is not.
    """

    name: ClassVar[str] = "free"
    images_are_frozen = True

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.hidden_size
        self.image = _tower(IMAGE_FEATURES, self.width, config.dropout)
        self.caption = _tower(TEXT_FEATURES, self.width, config.dropout)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # of cosines in stage 0; 1 / 0.07, as CLIP starts
        self.head = RewardHead(3 * self.width, HEADS)
        self.posterior = Posterior(len(self.last_layer()))
        self.frozen: Encoders = encoders(config.max_caption_tokens)

    @classmethod
    def build(cls, config: RewardConfig, data: TrainingData) -> Self:
        """Random weights, or the towers of `config.model`."""
        model = cls(config)
        if config.model:
            known = load_file(Path(config.model) / _WEIGHTS)
            model.load_state_dict({**model.state_dict(), **{k: v for k, v in known.items() if k.startswith(_TOWERS)}})
        return model

    def prepare(self, image: Image.Image) -> Tensor:
        """Pixels uint8 [3, S, S], S = `config.image_size`."""
        return pixels(image, self.config.image_size)

    def encode_images(self, batch: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to frozen features [B, 1, 2560]."""
        return self.frozen.images(batch)[:, None]

    def forward(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Outputs:
        """Rewards alone: the towers move with human labels, so their cosine is no score without labels."""
        heads = self.heads(image_states, captions, image_index)
        return Outputs.of(heads[:, 0], criteria=self.seen_criteria(heads))

    def heads(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        return self.head(self._pairs(image_states, captions, image_index))

    def features(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        return self.head.features(self._pairs(image_states, captions, image_index))

    def last_layer(self) -> Tensor:
        return self.head.last_layer()

    def joint_loss(
        self, image_states: Tensor, captions: Sequence[str], near_misses: Sequence[str | None] = ()
    ) -> Tensor:
        """InfoNCE of the towers within the batch; near misses are further captions."""
        wrong = [text for text in near_misses if text is not None]
        alike = same([*captions, *wrong])[: len(captions)].to(self.device)
        cosine = self._images(image_states) @ self._captions([*captions, *wrong]).T
        return contrastive(cosine * self.log_scale.clamp(max=4.6).exp(), alike)

    def save(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / _WEIGHTS)

    @classmethod
    def load(cls, folder: Path, config: RewardConfig) -> Self:
        model = cls(config)
        model.load_state_dict(load_file(folder / _WEIGHTS))
        return model

    def _pairs(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        """Image, caption and their product, entries near 1 in size, [N, 3 W]."""
        image = self._images(image_states)[image_index.to(self.device)] * self.width**0.5
        caption = self._captions(captions) * self.width**0.5
        return torch.cat([image, caption, image * caption], dim=-1)

    def _images(self, image_states: Tensor) -> Tensor:
        """Unit vectors [B, W]."""
        return F.normalize(self.image(image_states[:, 0]), dim=-1)

    def _captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors [N, W]."""
        return F.normalize(self.caption(self.frozen.captions(captions, self.device)), dim=-1)


@contextmanager
def free_backbone() -> Iterator[None]:
    """Within, a configuration may name the backbone `free`."""
    backbones._BACKBONES[FreeReward.name] = (__name__, FreeReward.__name__)
    settings.DEFAULTS[FreeReward.name] = DEFAULTS
    try:
        yield
    finally:
        del backbones._BACKBONES[FreeReward.name], settings.DEFAULTS[FreeReward.name]


def _tower(features: int, width: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(features), nn.Dropout(dropout), nn.Linear(features, width))
