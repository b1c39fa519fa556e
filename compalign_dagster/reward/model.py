"""What every reward model can do, and how one is found by its backbone's name.

What belongs here: the interface that training, scoring and evaluation rely on. What does not: any
backbone (`blip.py`, `offline.py`), the loss (`losses.py`), the folder on disk (`folder.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import CrawlPair, TrainingData
from compalign_dagster.reward.uncertainty import Posterior

if TYPE_CHECKING:
    from compalign_dagster.reward.loading import ImageLoader

Progress = Callable[[int, int, str], None]
HEADS = 1 + len(CRITERIA)  # the overall reward, then one for each criterion


def no_progress(done: int, total: int, what: str) -> None:
    """The default of every `progress` argument."""


@dataclass(frozen=True)
class Outputs:
    """One value per pair, float32. What the model lacks is NaN throughout."""

    reward: Tensor  # [N]; larger is better aligned; comparable across images
    criteria: Tensor  # [N, 4] in the order of CRITERIA; NaN where the training data had no ratings of it
    cosine: Tensor  # [N], of image and caption in the joint space
    itm: Tensor  # [N], probability that image and caption match
    label_free: Tensor  # [N], the best score without any human label, where that is more than cosine or itm
    reward_std: Tensor  # [N], standard deviation of `reward` given what the head learned from (`uncertainty.py`)

    @classmethod
    def of(cls, reward: Tensor, *, criteria: Tensor | None = None, **scores: Tensor) -> Self:
        """These values as float32, and NaN for the others."""
        nothing = torch.full_like(reward, torch.nan, dtype=torch.float32)
        criteria = nothing[:, None].expand(-1, len(CRITERIA)) if criteria is None else criteria.float()
        rest = {name: scores.pop(name, nothing).float() for name in ("cosine", "itm", "label_free", "reward_std")}
        if scores:
            raise TypeError(f"unknown scores {sorted(scores)}")
        return cls(reward.float(), criteria, **rest)


class RewardModel(nn.Module, ABC):
    """A scalar for an image and a caption, one for each criterion, and the baselines of its backbone."""

    name: ClassVar[str]  # the backbone's name
    image_side: int = 0  # px; `decode` an image for `prepare` with it; 0 where that wants every pixel
    images_are_frozen: bool = False  # nothing trains in encode_images: its output may be cached
    reads_crawl: ClassVar[bool] = False  # learn_crawl does something
    captions_apart: ClassVar[bool] = False  # encode_captions: no caption is read with its image
    least_tokens: int = 1  # computed for a caption, however short it is; for those that are `captions_apart`
    config: RewardConfig
    trained_criteria: Tensor  # bool [4]; which criteria had ratings; set by training
    calibration: Tensor  # float64 [2]; slope and offset of `human_fit`, NaN where no ratings were held out
    posterior: Posterior  # of the reward's last layer, NaN until training has fitted it

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("trained_criteria", torch.zeros(len(CRITERIA), dtype=torch.bool))
        self.register_buffer("calibration", torch.full((2,), torch.nan, dtype=torch.float64))

    @classmethod
    @abstractmethod
    def build(cls, config: RewardConfig, data: TrainingData) -> Self:
        """An untrained model: weights from `config.model`, or random and a tokenizer learned from `data`."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """One decoded RGB image as `encode_images` takes it, on the CPU; uint8 where that is enough.

        All prepared images have one shape, so that they stack. Several threads may prepare at once.
        """

    @abstractmethod
    def encode_images(self, batch: Tensor) -> Tensor:
        """Prepared images [B, ...] to states [B, T, D], once per image for all of its captions."""

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Captions to states [N, D], which `forward` then takes in their place; where they are `captions_apart`."""
        raise NotImplementedError(f"{self.name} reads a caption together with its image")

    @abstractmethod
    def forward(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Outputs:
        """Score N captions; `captions[n]` belongs to `image_states[image_index[n]]` (int64 [N])."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (safetensors), shape, tokenizer and preprocessing into an existing folder."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: RewardConfig) -> Self:
        """Read back what `save` wrote; `config` is the one it was trained with."""

    @abstractmethod
    def heads(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        """The overall reward, then one score for each of CRITERIA, [N, 5]; what training differentiates.

        A criterion's score is sigmoid^-1 of its rating as (rating - 1) / 4. Columns that never saw a
        rating mean nothing; `forward` hides them.
        """

    def features(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        """What the overall reward is linear in, with a constant 1, [N, K]: see `uncertainty.py`.

        Needed of a backbone that is trained, with `last_layer` and a `posterior` of that width.
        """
        raise NotImplementedError(f"{self.name} has no last layer to be unsure of")

    def last_layer(self) -> Tensor:
        """The weights [K] that make the overall reward of `features`."""
        raise NotImplementedError(f"{self.name} has no last layer to be unsure of")

    def learn_crawl(self, images: "ImageLoader", pairs: Sequence[CrawlPair], *, progress: Progress) -> None:
        """Stage 0 at once, in closed form, from crawl pairs without labels; most backbones do nothing."""

    def human_fit(self, reward: Tensor) -> Tensor:
        """Probability that a person says the caption fits, [N]: sigmoid(slope * reward + offset).

        NaN where no ratings were held out to fit `calibration` on.
        """
        slope, offset = self.calibration.to(reward.device)
        return torch.sigmoid(slope * reward + offset)

    def seen_criteria(self, heads: Tensor) -> Tensor:
        """The criterion columns of `heads`, [N, 4], NaN where the training data had no ratings."""
        return heads[:, 1:].float().masked_fill(~self.trained_criteria, torch.nan)

    def joint_loss(
        self, image_states: Tensor, captions: Sequence[str], near_misses: Sequence[str | None] = ()
    ) -> Tensor:
        """Stage 0: caption i belongs to image i, all else in the batch does not. Scalar.

        `near_misses[i]`, where given, is a wrong caption of image i that reads like its own.
        Needed only where `pretrain_steps` or `joint_weight` is not 0.
        """
        raise NotImplementedError(f"{self.name} has no joint space to pre-train")

    def parameter_groups(self, frozen_share: float) -> list[dict[str, Any]]:
        """What stage 1 trains, as torch optimiser groups; `frozen_share` of the lower layers rest."""
        return [{"params": [value for value in self.parameters() if value.requires_grad]}]

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before any cut, or an empty list where the model has no limit."""
        return []

    def provenance(self) -> dict[str, Any]:
        """Where pretrained weights came from, for the record."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


_BACKBONES = {
    "blip": ("compalign_dagster.reward.blip", "BlipReward"),
    "blip-tiny": ("compalign_dagster.reward.blip", "TinyBlipReward"),
    "dual": ("compalign_dagster.reward.dual", "DualReward"),
    "offline": ("compalign_dagster.reward.offline", "OfflineReward"),
}


def backbone(name: str) -> type[RewardModel]:
    """The class of a backbone; its module is imported only now. `InputError` for an unknown name."""
    if name not in _BACKBONES:
        raise InputError(
            "backbone of a reward model",
            expected=f"one of {', '.join(_BACKBONES)}",
            found=repr(name),
            remedy="Choose one, or use the release that knows it.",
        )
    module, cls = _BACKBONES[name]
    return getattr(import_module(module), cls)
