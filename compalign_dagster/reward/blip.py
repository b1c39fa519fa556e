"""BLIP as a reward model: its vision tower, image-grounded text encoder, ITC and ITM heads, and our head.

The reward is MLP(h_CLS(text | image)). Pretrained weights come from a local folder or a hub id with
a pinned revision; `blip-tiny` is the same architecture, small and trained from scratch. What does not
belong here: losses other than BLIP's own joint loss, and the training loop.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

from compalign_dagster.reward.blip_text import VisionAttention, cls_states
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import TrainingData, texts
from compalign_dagster.reward.head import RewardHead, in_full
from compalign_dagster.reward.joint import contrastive, hard_negatives, same
from compalign_dagster.reward.model import HEADS, Outputs, RewardModel
from compalign_dagster.reward.preprocessing import per_channel, scaled_to, squared, squashed
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
from compalign_dagster.reward.tokenizer import train_tokenizer
from compalign_dagster.reward.uncertainty import Posterior


class BlipReward(RewardModel):
    """BLIP with pretrained weights."""

    name: ClassVar[str] = "blip"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: RewardConfig,
        blip: BlipForImageTextRetrieval,
        tokenizer: Any,
        preprocessing: dict[str, Any],
    ) -> None:
        super().__init__()
        self.blip: Any = blip
        for layer in self.blip.vision_model.encoder.layers:
            layer.self_attn = VisionAttention(layer.self_attn)
        self.tokenizer, self.preprocessing = tokenizer, preprocessing
        self.image_side = scaled_to(preprocessing)
        limit = self._text_config.max_position_embeddings
        self.config = replace(config, max_caption_tokens=min(config.max_caption_tokens, limit))
        self.head = RewardHead(self._text_config.hidden_size, HEADS)
        self.posterior = Posterior(len(self.last_layer()))
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(0.07))))  # BLIP's initial value
        self.register_buffer("mean", per_channel(preprocessing["image_mean"]), persistent=False)
        self.register_buffer("std", per_channel(preprocessing["image_std"]), persistent=False)

    @classmethod
    def build(cls, config: RewardConfig, data: TrainingData) -> Self:
        """Pretrained weights from `config.model`; `InputError` where they cannot be had whole and pinned."""
        source = pinned(config)
        try:
            descriptions(source)
            blip = read_network(BlipForImageTextRetrieval, source)
            tokenizer = read_tokenizer(BertTokenizer, source, blip)
        except (OSError, ValueError) as error:
            raise unusable(source, "an image-text retrieval (ITM) model of BLIP in safetensors", error) from error
        return cls(config, blip, tokenizer, squashed(config.image_size))

    def prepare(self, image: Image.Image) -> Tensor:
        """uint8 [3, S, S]: squashed to a square, bicubic, as BLIP's own evaluation does."""
        return squared(image, self.preprocessing)

    def encode_images(self, batch: Tensor) -> Tensor:
        pixels = (batch.to(self.device).float() / 255 - self.mean) / self.std
        vision = self.blip.vision_model
        other_size = pixels.shape[-1] != vision.config.image_size
        return vision(pixel_values=pixels, interpolate_pos_encoding=other_size).last_hidden_state

    def forward(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Outputs:
        ids, mask = self._tokens(captions)
        image_index = image_index.to(self.device)
        fused = self._fused(ids, mask, image_states, image_index)
        images, words = self._joint_images(image_states), self._joint_texts(ids, mask)
        heads = self.head(fused)
        return Outputs.of(
            heads[:, 0],
            criteria=self.seen_criteria(heads),
            cosine=(images[image_index] * words).sum(-1),
            itm=self._matching(fused).softmax(-1)[:, 1],
            reward_std=self.posterior(self.head.features(fused)),
        )

    def heads(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        ids, mask = self._tokens(captions)
        return self.head(self._fused(ids, mask, image_states, image_index))

    def features(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> Tensor:
        ids, mask = self._tokens(captions)
        return self.head.features(self._fused(ids, mask, image_states, image_index))

    def last_layer(self) -> Tensor:
        return self.head.last_layer()

    def joint_loss(
        self, image_states: Tensor, captions: Sequence[str], near_misses: Sequence[str | None] = ()
    ) -> Tensor:
        """BLIP's ITC + ITM with a hard negative caption and image each; near misses replace the image."""
        wrong = [(at, text) for at, text in enumerate(near_misses) if text is not None]
        ids, mask = self._tokens([*captions, *(text for _, text in wrong)])
        count = len(captions)
        images, words = self._joint_images(image_states), self._joint_texts(ids[:count], mask[:count])
        logits = images @ words.T / self.log_temperature.clamp(-6.9, -0.7).exp()  # 0.001 .. 0.5
        alike = same(captions).to(self.device)
        own = torch.arange(count, device=self.device)
        of_image, of_text = [own, own], [own, hard_negatives(logits, alike)]
        match = [torch.ones_like(own), alike[own, of_text[1]].long()]
        if wrong:
            of_image.append(torch.tensor([at for at, _ in wrong], device=self.device))
            of_text.append(torch.arange(count, len(ids), device=self.device))
            match.append(torch.zeros_like(of_image[-1]))
        else:
            of_image.append(hard_negatives(logits.T, alike))
            of_text.append(own)
            match.append(alike[of_image[-1], own].long())
        rows = torch.cat(of_text)
        fused = self._fused(ids[rows], mask[rows], image_states, torch.cat(of_image))
        return contrastive(logits, alike) + F.cross_entropy(self._matching(fused), torch.cat(match))

    def parameter_groups(self, frozen_share: float) -> list[dict[str, Any]]:
        """All weights but the embeddings and the lower `frozen_share` of both towers' layers."""
        freeze_lower((self.blip.vision_model, self.blip.text_encoder), frozen_share)
        return split_head(self, self.config.head_lr)

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        if not len(captions):
            return []
        return [len(ids) for ids in self.tokenizer(list(captions), verbose=False)["input_ids"]]

    def provenance(self) -> dict[str, Any]:
        return {"model": self.config.model, "revision": self.config.revision}

    def save(self, folder: Path) -> None:
        save_parts(self, folder, "blip", self.tokenizer, self.preprocessing)

    @classmethod
    def load(cls, folder: Path, config: RewardConfig) -> Self:
        descriptions(Source(str(folder / "blip")))
        blip = reread_network(BlipForImageTextRetrieval, folder / "blip")
        tokenizer = read_tokenizer(BertTokenizer, Source(str(folder / TOKENIZER)), blip)
        model = cls(config, blip, tokenizer, json.loads((folder / PREPROCESSING).read_text()))
        load_head(model, folder, "blip")
        return model

    @property
    def _text_config(self) -> Any:
        return self.blip.config.text_config

    def _tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        limit = self.config.max_caption_tokens
        encoded = self.tokenizer(
            list(captions), padding=True, padding_side="right", truncation=True, max_length=limit, return_tensors="pt"
        )
        return encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)

    def _fused(self, ids: Tensor, mask: Tensor, image_states: Tensor, image_index: Tensor) -> Tensor:
        """h_CLS(text | image), [N, D]."""
        return cls_states(self.blip.text_encoder, ids, mask, image_states, image_index)

    def _matching(self, fused: Tensor) -> Tensor:
        """Logits of ITM, that the pair does not match and that it does, [N, 2]."""
        with in_full(fused):
            return self.blip.itm_head(fused.float())

    def _joint_images(self, image_states: Tensor) -> Tensor:
        return F.normalize(self.blip.vision_proj(image_states[:, 0]).float(), dim=-1)

    def _joint_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(self.blip.text_proj(cls_states(self.blip.text_encoder, ids, mask)).float(), dim=-1)


class TinyBlipReward(BlipReward):
    """The same network, small, with random weights and a tokenizer learned from the captions at hand."""

    name: ClassVar[str] = "blip-tiny"

    @classmethod
    def build(cls, config: RewardConfig, data: TrainingData) -> Self:
        tokenizer = train_tokenizer(texts(data), vocabulary_size=config.vocabulary_size)
        shared = {
            # BLIP's 0.02 (1e-10 for positions) suits width 768; a narrow net needs more to carry a signal.
            "initializer_range": config.hidden_size**-0.5,
            "hidden_size": config.hidden_size,
            "intermediate_size": 4 * config.hidden_size,
            "num_attention_heads": config.heads,
        }
        vision = shared | {
            "num_hidden_layers": config.vision_layers,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
        }
        text = shared | {
            "num_hidden_layers": config.text_layers,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": config.max_caption_tokens,
            "hidden_dropout_prob": config.dropout,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        blip = BlipForImageTextRetrieval(
            BlipConfig(
                vision_config=vision,
                text_config=text,
                image_text_hidden_size=config.joint_size,
                initializer_range=shared["initializer_range"],
            )
        )
        return cls(config, blip, tokenizer, squashed(config.image_size))

    def provenance(self) -> dict[str, Any]:
        return {"model": None, "trained": "from scratch"}
