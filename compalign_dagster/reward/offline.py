"""The offline reward model: frozen encoders from wheels, a memory of the crawl, a small reward head.

The memory says where in the captions' own space a picture's captions would lie; it learns from crawl pairs
without human labels (`offline_crawl.py`). The reward head reads only how image and caption agree, never the
caption alone, so that length or fluency cannot be a shortcut and rewards compare across images. What does not
belong here: the frozen encoders (`offline_features.py`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import CrawlPair, TrainingData
from compalign_dagster.reward.head import in_full, with_constant
from compalign_dagster.reward.loading import ImageLoader
from compalign_dagster.reward.model import HEADS, Outputs, Progress, RewardModel
from compalign_dagster.reward.offline_crawl import MOST_IMAGES, CrawlMemory
from compalign_dagster.reward.offline_encoders import Encoders, encoders, frozen_features, text_features
from compalign_dagster.reward.offline_features import (
    TEXT_FEATURES,
    check_weights,
    pixels,
    weights,
)
from compalign_dagster.reward.uncertainty import Posterior

__all__ = ["OfflineReward", "frozen_features", "text_features"]

_WEIGHTS, _FROZEN = "model.safetensors", "frozen.json"
_CAPTION_BATCH = 1024
_NEIGHBOURS_SHARE = 1.0  # of the neighbours in the score without labels, against 1 of the prediction
_DECAY = 3.0  # pulls the directions' weights to zero: a few hundred judged images move them little


class AgreementHead(nn.Module):
    """How a pair agrees, to scores [N, 5]: weighted agreements, and a learned weight for each direction.

    Starts as the score without labels, which already ranks captions well, and learns from people how much each
    agreement and each direction of the captions' space count. A few hundred judged images support no larger head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([1.0, _NEIGHBOURS_SHARE]).repeat(HEADS, 1))
        self.offset = nn.Parameter(torch.zeros(HEADS))
        self.direction = nn.Parameter(torch.zeros(HEADS, TEXT_FEATURES))

    def forward(self, agreements: Tensor, products: Tensor) -> Tensor:
        """Agreements [N, 2] and products of unit vectors [N, 384] to scores [N, 5]."""
        with in_full(agreements):
            return agreements @ self.gain.T + products * TEXT_FEATURES**0.5 @ self.direction.T + self.offset

    def features(self, agreements: Tensor, products: Tensor) -> Tensor:
        """What every score is linear in, [N, 387]: the agreements, the products at their scale, and a constant 1."""
        return with_constant(torch.cat([agreements, products * TEXT_FEATURES**0.5], dim=1))

    def last_layer(self) -> Tensor:
        """The weights of the first score, [387]."""
        return torch.cat([self.gain[0], self.direction[0], self.offset[:1]])


class OfflineReward(RewardModel):
    """Rewards on a CPU without a model hub. `encode_images` gives frozen features, [B, 1, 2560]."""

    name = "offline"
    images_are_frozen = True
    reads_crawl = True

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        self.crawl = CrawlMemory()
        self.agreement = AgreementHead()
        self.posterior = Posterior(len(self.last_layer()))
        self.frozen: Encoders = encoders(config.max_caption_tokens)

    @classmethod
    def build(cls, config: RewardConfig, data: TrainingData) -> Self:
        """A fresh head and an empty memory."""
        if config.model is not None:
            raise InputError(
                "setting model of the offline backbone",
                expected="nothing: its frozen weights come with the extra 'photos'",
                found=repr(config.model),
                remedy="Remove it, or choose the backbone blip.",
            )
        return cls(config)

    def prepare(self, image: Image.Image) -> Tensor:
        """Pixels uint8 [3, S, S], S = `config.image_size`."""
        return pixels(image, self.config.image_size)

    def encode_images(self, batch: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to frozen features [B, 1, 2560]."""
        return self.frozen.images(batch)[:, None]

    @torch.no_grad()
    def learn_crawl(self, images: ImageLoader, pairs: Sequence[CrawlPair], *, progress: Progress) -> None:
        """Fill the memory from at most `MOST_IMAGES` images of these pairs, drawn by seed; equal images are one."""
        by_image = [
            (place, [caption for _, caption in found])
            for place, found in groupby(sorted(pairs), key=lambda pair: pair[0])
        ]
        by_image = [by_image[at] for at in _drawn(len(by_image), self.config.seed)]
        features = []
        for start in range(0, len(by_image), 32):
            features.append(images.batch([place for place, _ in by_image[start : start + 32]])[:, 0])
        frozen, image = _distinct(torch.cat(features).cpu())
        owned = sorted(
            ((at, caption) for at, (_, found) in zip(image, by_image, strict=True) for caption in found),
            key=lambda pair: pair[0],
        )
        captions = [caption for _, caption in owned]
        vectors = []
        for start in range(0, len(captions), _CAPTION_BATCH):
            vectors.append(self.frozen.captions(captions[start : start + _CAPTION_BATCH]))
            progress(min(start + _CAPTION_BATCH, len(captions)), len(captions), "crawl captions")
        self.crawl = CrawlMemory.learn(frozen, torch.cat(vectors), torch.tensor([at for at, _ in owned]))
        self.crawl.to(self.device)

    def forward(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Outputs:
        """Rewards and baselines of N pairs; this backbone has no matching head, so `itm` is NaN.

        `cosine` is that of the caption and the predicted caption; `label_free` adds the neighbours'.
        """
        agreements, products = self._compare(image_states, captions, image_index)
        heads = self.agreement(agreements, products)
        return Outputs.of(
            heads[:, 0],
            criteria=self.seen_criteria(heads),
            cosine=products.sum(1),
            label_free=agreements[:, 0] + _NEIGHBOURS_SHARE * agreements[:, 1],
            reward_std=self.posterior(self.agreement.features(agreements, products)),
        )

    def heads(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        return self.agreement(*self._compare(image_states, captions, image_index))

    def features(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        return self.agreement.features(*self._compare(image_states, captions, image_index))

    def last_layer(self) -> Tensor:
        return self.agreement.last_layer()

    def parameter_groups(self, frozen_share: float) -> list[dict[str, Any]]:
        """Stage 1 trains the reward head alone; what the crawl taught stays."""
        head = self.agreement
        return [
            {"params": [head.gain, head.offset], "weight_decay": 0.0},
            {"params": [head.direction], "weight_decay": _DECAY},
        ]

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before any cut."""
        return self.frozen.text_net.token_counts(captions)

    def provenance(self) -> dict[str, Any]:
        """The frozen wheels: names, versions, digests."""
        return {"frozen": [asdict(item) for item in weights()]}

    def save(self, folder: Path) -> None:
        """Write memory and head, and the digests of the frozen weights; those weights stay in their wheels."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / _WEIGHTS)
        frozen = [asdict(item) for item in weights()]
        (folder / _FROZEN).write_text(json.dumps(frozen, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path, config: RewardConfig) -> Self:
        """Read back what `save` wrote. `InputError` where other frozen weights are installed."""
        check_weights(json.loads((folder / _FROZEN).read_text()))
        found = load_file(folder / _WEIGHTS)
        model = cls(config)
        model.crawl = CrawlMemory(len(found["crawl.places"]), len(found["crawl.captions"]))
        model.load_state_dict(found)
        return model

    @torch.no_grad()
    def _compare(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> tuple[Tensor, Tensor]:
        """Agreements [N, 2] and products of unit vectors [N, 384] of N pairs, in full precision whatever training has.

        Distances rounded to bf16 would no longer tell an image that was learned from.
        """
        image_index = image_index.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            view = self.crawl.view(image_states[:, 0].float())
            seen = self.crawl.seen(self.frozen.captions(captions, self.device))
            return self.crawl.agreements(view, seen, image_index), view.vector[image_index] * seen


def _distinct(features: Tensor) -> tuple[Tensor, list[int]]:
    """The different rows [M, D] in the order met, and which of them each row is: a copy must not vouch for an image."""
    known: dict[bytes, int] = {}
    which = [known.setdefault(row.numpy().tobytes(), len(known)) for row in features]
    first = {row: at for at, row in reversed(list(enumerate(which)))}
    return features[[first[row] for row in range(len(first))]], which


def _drawn(images: int, seed: int) -> list[int]:
    """Which of so many images are remembered, in order."""
    if images <= MOST_IMAGES:
        return list(range(images))
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(images, generator=generator)[:MOST_IMAGES].tolist())
