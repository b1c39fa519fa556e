"""Any CLIP, SigLIP or SigLIP 2 of transformers as a reward model: two towers, and our head over how they agree.

The cosine of the two vectors is what CLIPScore is made of (Hessel et al. 2021, arXiv 2104.08718):
2.5 * max(cosine, 0) of a caption prefixed with "A photo depicts". `Outputs.cosine` is the plain cosine of
the plain caption: the factor changes no order, the cut at zero only adds ties, and the prefix is one
network's habit. What does not belong here: where weights come from (`pretrained.py`), pixels
(`preprocessing.py`).
"""

import json
import math
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.head import RewardHead
from compalign_dagster.reward.joint import contrastive, same, sigmoid_contrast
from compalign_dagster.reward.model import HEADS, Outputs, RewardModel
from compalign_dagster.reward.preprocessing import per_channel, scaled_to, side_of, squared, understood
from compalign_dagster.reward.pretrained import (
    PREPROCESSING,
    TOKENIZER,
    Source,
    descriptions,
    freeze_lower,
    load_head,
    pinned,
    read_network,
    read_tokenizer,
    reread_network,
    save_parts,
    split_head,
    unusable,
)
from compalign_dagster.reward.uncertainty import Posterior

_NETWORK = "network"  # the submodule, and its folder
_NETWORKS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
_EXPECTED = f"a {', '.join(_NETWORKS)} model in safetensors with its tokenizer and preprocessing"
_GEMMA = 200_000  # pieces; its tokenizer has 256,000, that of the first SigLIP 32,000
_SCALE = 20.0  # rewards of a cosine of 1: matches then lie some 2 to 4 above mismatches
_CLIP_CENTRE = 0.2  # cosine between those of CLIP's usual matches and mismatches


class DualHead(nn.Module):
    """Unit vectors of images and captions [N, D] to scores [N, 5]: a scaled cosine and an MLP beside it.

    The cosine already ranks captions, so training starts from CLIPScore's order. The MLP reads only the
    two vectors' product and absolute difference: given either vector alone it could learn what captions
    people like, or what images, and neither says whether they agree.
    """

    def __init__(self, width: int, centre: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((HEADS,), _SCALE))
        self.centre = nn.Parameter(torch.full((HEADS,), centre))
        self.rest = RewardHead(2 * width, HEADS)

    def forward(self, image: Tensor, caption: Tensor) -> Tensor:
        cosine = (image * caption).sum(-1, keepdim=True)
        return self.scale * (cosine - self.centre) + self.rest(_agreement(image, caption))

    def features(self, image: Tensor, caption: Tensor) -> Tensor:
        """What every score is linear in: the cosine, then what the MLP's last layer reads, [N, K]."""
        cosine = (image * caption).sum(-1, keepdim=True)
        return torch.cat([cosine, self.rest.features(_agreement(image, caption))], dim=-1)

    def last_layer(self) -> Tensor:
        """The weights of the first score, [K]."""
        first = self.rest.last_layer()
        return torch.cat([self.scale[:1], first[:-1], first[-1:] - self.scale[:1] * self.centre[:1]])


class DualReward(RewardModel):
    """A pretrained pair of towers with a shared space. `encode_images` gives unit vectors, [B, 1, D]."""

    name: ClassVar[str] = "dual"
    captions_apart: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(self, config: RewardConfig, network: Any, tokenizer: Any, preprocessing: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.tokenizer, self.preprocessing = network, tokenizer, preprocessing
        self.image_side = scaled_to(preprocessing)
        self.kind: str = network.config.model_type
        self.text_limit: int = network.config.text_config.max_position_embeddings
        self.least_tokens = 1 if self.kind == "clip" else self.text_limit
        self.config = replace(
            config,
            max_caption_tokens=min(config.max_caption_tokens, self.text_limit),
            image_size=side_of(preprocessing),
        )
        # SigLIP's first tokenizer was trained without punctuation; SigLIP 2 has Gemma's, which has it.
        gemma = self.kind == "siglip2" or len(tokenizer) >= _GEMMA
        self._left_out = {} if gemma else str.maketrans("", "", string.punctuation)
        # With nothing to train below the head, images need encoding once a training and not once a step.
        self.images_are_frozen = config.frozen_share == 1 and not (config.pretrain_steps or config.joint_weight)
        bias = getattr(network, "logit_bias", None)
        centre = _CLIP_CENTRE if bias is None else float(-bias.detach() / network.logit_scale.detach().exp())
        self.head = DualHead(_width(network), centre)
        self.posterior = Posterior(len(self.last_layer()))
        self.register_buffer("mean", per_channel(preprocessing["image_mean"]), persistent=False)
        self.register_buffer("std", per_channel(preprocessing["image_std"]), persistent=False)

    @classmethod
    def build(cls, config: RewardConfig, data: TrainingData) -> Self:
        """Pretrained weights from `config.model`; `InputError` where they cannot be had whole and pinned.

        The model's own limits on captions and, where `config.image_size` is 0, its image size replace
        those of `config`.
        """
        source = pinned(config)
        try:
            described = descriptions(source)
            network = read_network(_class(described["config.json"]), source)
            tokenizer = _tokenizer(network, source)
            given = _preprocessing(network.config, described.get(PREPROCESSING, {}))
        except (OSError, ValueError, KeyError) as error:
            raise unusable(source, _EXPECTED, error) from error
        return cls(config, network, tokenizer, understood(given, side=config.image_size))

    def prepare(self, image: Image.Image) -> Tensor:
        """uint8 [3, S, S], as the network's own preprocessing has it."""
        return squared(image, self.preprocessing)

    def encode_images(self, batch: Tensor) -> Tensor:
        pixels = (batch.to(self.device).float() / 255 - self.mean) / self.std
        vision = self.network.vision_model.config
        if self.kind == "siglip2":
            found = self.network.get_image_features(**_patches(pixels, vision.patch_size))
        else:
            found = self.network.get_image_features(
                pixel_values=pixels, interpolate_pos_encoding=pixels.shape[-1] != vision.image_size
            )
        return F.normalize(found.pooler_output.float(), dim=-1)[:, None]

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors, [N, D]. SigLIP reads its padding, so that every caption has its full length."""
        clip = self.kind == "clip"
        padding: dict[str, Any] = (
            {"padding": True} if clip else {"padding": "max_length", "max_length": self.text_limit}
        )
        ids = self.tokenizer(self._plain(captions), truncation=True, max_length=self.config.max_caption_tokens)
        encoded = self.tokenizer.pad({"input_ids": ids["input_ids"]}, **padding, return_tensors="pt").to(self.device)
        found = self.network.get_text_features(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"] if clip else None
        )
        return F.normalize(found.pooler_output.float(), dim=-1)

    def forward(self, image_states: Tensor, captions: Sequence[str] | Tensor, image_index: Tensor) -> Outputs:
        """This backbone has no matching head: `itm` is NaN."""
        image, caption = self._vectors(image_states, captions, image_index)
        heads = self.head(image, caption)
        return Outputs.of(
            heads[:, 0],
            criteria=self.seen_criteria(heads),
            cosine=(image * caption).sum(-1),
            reward_std=self.posterior(self.head.features(image, caption)),
        )

    def heads(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        return self.head(*self._vectors(image_states, captions, image_index))

    def features(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        return self.head.features(*self._vectors(image_states, captions, image_index))

    def last_layer(self) -> Tensor:
        return self.head.last_layer()

    def joint_loss(
        self, image_states: Tensor, captions: Sequence[str], near_misses: Sequence[str | None] = ()
    ) -> Tensor:
        """The network's own contrast, softmax for CLIP and sigmoid for SigLIP; near misses are further captions."""
        wrong = [text for text in near_misses if text is not None]
        alike = same([*captions, *wrong])[: len(captions)].to(self.device)
        cosine = image_states[:, 0] @ self.encode_captions([*captions, *wrong]).T
        logits = cosine * self.network.logit_scale.clamp(max=math.log(100)).exp()
        if self.kind == "clip":
            return contrastive(logits, alike)
        return sigmoid_contrast(logits + self.network.logit_bias, alike)

    def parameter_groups(self, frozen_share: float) -> list[dict[str, Any]]:
        """All weights but the lower `frozen_share` of both towers; at 1 the head trains alone."""
        freeze_lower((self.network.vision_model, self.network.text_model), frozen_share)
        if frozen_share == 1:
            self.network.requires_grad_(False)
        return split_head(self, self.config.head_lr)

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        if not len(captions):
            return []
        return [len(ids) for ids in self.tokenizer(self._plain(captions), verbose=False)["input_ids"]]

    def provenance(self) -> dict[str, Any]:
        return {"model": self.config.model, "revision": self.config.revision, "kind": self.kind}

    def save(self, folder: Path) -> None:
        save_parts(self, folder, _NETWORK, self.tokenizer, self.preprocessing)

    @classmethod
    def load(cls, folder: Path, config: RewardConfig) -> Self:
        described = descriptions(Source(str(folder / _NETWORK)))
        network: Any = reread_network(_class(described["config.json"]), folder / _NETWORK)
        tokenizer = _tokenizer(network, Source(str(folder / TOKENIZER)))
        preprocessing = understood(json.loads((folder / PREPROCESSING).read_text()))
        model = cls(config, network, tokenizer, preprocessing)
        load_head(model, folder, _NETWORK)
        return model

    def _vectors(
        self, image_states: Tensor, captions: Sequence[str] | Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors of the images and captions of N pairs, [N, D] each."""
        read = captions if isinstance(captions, Tensor) else self.encode_captions(captions)
        return image_states[:, 0][image_index.to(self.device)], read

    def _plain(self, captions: Sequence[str]) -> list[str]:
        """Captions as SigLIP's training had them; the tokenizers library alone does not do all of it."""
        if self.kind == "clip":
            return list(captions)
        return [" ".join(text.lower().translate(self._left_out).split()) for text in captions]


def _agreement(image: Tensor, caption: Tensor) -> Tensor:
    """Product and absolute difference of unit vectors [N, D], entries near 1 in size, [N, 2 D]."""
    width = image.shape[-1]  # entries of unit vectors are about width ** -0.5
    return torch.cat([image * caption * width, (image - caption).abs() * width**0.5], dim=-1)


def _class(config: dict[str, Any]) -> Any:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _NETWORKS:
        raise ValueError(f"model_type {kind!r}")
    return getattr(transformers, _NETWORKS[kind])


def _width(network: Any) -> int:
    text = network.config.text_config
    return network.config.projection_dim if network.config.model_type == "clip" else text.projection_size


def _tokenizer(network: Any, source: Source) -> Any:
    """CLIP's own; for SigLIP its `tokenizer.json`, because sentencepiece models need packages of their own."""
    clip = network.config.model_type == "clip"
    return read_tokenizer(transformers.CLIPTokenizer if clip else transformers.PreTrainedTokenizerFast, source, network)


def _preprocessing(config: Any, given: dict[str, Any]) -> dict[str, Any]:
    """SigLIP 2 with free aspect ratios describes a number of patches: here they make up a square."""
    if config.model_type != "siglip2":
        return given
    patches = given.get("max_num_patches", config.vision_config.num_patches)
    return {**given, "size": math.isqrt(patches) * config.vision_config.patch_size}


def _patches(pixels: Tensor, size: int) -> dict[str, Tensor]:
    """Pixels [B, 3, S, S] as SigLIP 2 takes them: patches [B, (S / size) ** 2, size * size * 3], row by row."""
    count, side = len(pixels), pixels.shape[-1] // size
    cut = pixels.reshape(count, 3, side, size, side, size).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": cut.reshape(count, side * side, -1),
        "pixel_attention_mask": torch.ones(count, side * side, dtype=torch.int64, device=pixels.device),
        "spatial_shapes": torch.full((count, 2), side, device=pixels.device),
    }
