"""BLIP's text encoder over captions of unequal length, several of them of one image: nothing is computed twice.

The layers and weights are those of `transformers`; only the order of the work differs. Linear layers see the tokens of
all captions one after another, so that nothing is computed on padding. An image's keys and values are computed once
for all of its captions, whose tokens look at them together. What does not belong here: heads and losses (`blip.py`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class VisionAttention(nn.Module):
    """Self-attention of BLIP's vision tower in one fused step, with the parameters of the module it replaces."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.qkv, self.projection = stock.qkv, stock.projection
        self.heads, self.dropout = stock.num_heads, stock.dropout

    def forward(self, hidden_states: Tensor, **unused: Any) -> tuple[Tensor, None]:
        """States [B, T, D] to states [B, T, D]; attention weights are not kept."""
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        return self.projection(_attend(self, query, key, value, self.heads)), None


class _Ragged:
    """Sequences of unequal length (int64 [R]): end to end in one tensor [S, D], or padded with zeros, [R, most, D]."""

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        there = torch.arange(int(lengths.max())) < lengths[:, None]
        self.size = int(lengths.sum())
        self.there = there.to(device)
        self.at = there.flatten().nonzero()[:, 0].to(device)

    def padded(self, states: Tensor) -> Tensor:
        """[S, D] to [R, most, D]."""
        blank = states.new_zeros(self.there.numel(), states.shape[1])
        return blank.index_copy(0, self.at, states).unflatten(0, self.there.shape)

    def packed(self, states: Tensor) -> Tensor:
        """[R, most, D] to [S, D]."""
        return states.flatten(0, 1).index_select(0, self.at)


@dataclass(frozen=True)
class _Seen:
    """Some images with states [R, T, D], and the tokens of each one's captions."""

    states: Tensor
    tokens: _Ragged


def cls_states(text: Any, ids: Tensor, mask: Tensor, images: Tensor | None = None, owner: Any = None) -> Tensor:
    """States of [CLS], [N, D], as the `BlipTextModel` `text` computes them.

    Captions are `ids` and `mask`, int64 [N, L], padded on the right. With `images` [B, T, D], caption n looks at
    `images[owner[n]]` (int64 [N]).
    """
    lengths = mask.sum(1).cpu()
    order = torch.arange(len(ids))
    seen: list[_Seen] = []
    if images is not None:
        order, seen = _together(images, owner.cpu(), lengths)
    lengths = lengths[order]
    words = _Ragged(lengths, ids.device)
    states = words.packed(text.embeddings(input_ids=ids[order.to(ids.device), : words.there.shape[1]]))
    for layer in text.encoder.layer:
        states = layer.attention.output(_among(layer.attention.self, states, words), states)
        if seen:
            states = layer.crossattention.output(_across(layer.crossattention.self, states, seen), states)
        states = layer.feed_forward_chunk(states)
    first = (lengths.cumsum(0) - lengths)[order.argsort()]
    return states.index_select(0, first.to(states.device))


def _together(images: Tensor, owner: Tensor, lengths: Tensor) -> tuple[Tensor, list[_Seen]]:
    """An order of captions in which those of one image are together, and the images in that order.

    Images whose captions have between 2^k and 2^(k+1) tokens in all are taken together: at most half is then padding.
    """
    tokens = torch.zeros(len(images), dtype=torch.int64).index_add_(0, owner, lengths)
    size = tokens.clamp(min=1).log2().floor().long()
    order = (size[owner] * len(images) + owner).argsort(stable=True)
    seen = []
    for found in size[owner].unique():
        which = ((size == found) & (tokens > 0)).nonzero()[:, 0]
        states = images if len(which) == len(images) else images.index_select(0, which.to(images.device))
        seen.append(_Seen(states, _Ragged(tokens[which], images.device)))
    return order, seen


def _among(attention: Any, states: Tensor, words: _Ragged) -> Tensor:
    """Each token looks at those of its own caption."""
    joined = torch.cat([attention.query(states), attention.key(states), attention.value(states)], dim=1)
    query, key, value = words.padded(joined).chunk(3, dim=-1)
    heads = attention.num_attention_heads
    return words.packed(_attend(attention, query, key, value, heads, words.there[:, None, None]))


def _across(attention: Any, states: Tensor, seen: list[_Seen]) -> Tensor:
    """Each token looks at all of its caption's image."""
    found = []
    for part, some in zip(attention.query(states).split([some.tokens.size for some in seen]), seen, strict=True):
        key, value = attention.key(some.states), attention.value(some.states)
        context = _attend(attention, some.tokens.padded(part), key, value, attention.num_attention_heads)
        found.append(some.tokens.packed(context))
    return torch.cat(found)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Queries [R, Q, D] on keys and values [R, T, D] to [R, Q, D], with the module's dropout while it trains."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    dropout = module.dropout.p if module.training else 0.0
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return context.transpose(1, 2).flatten(2)
