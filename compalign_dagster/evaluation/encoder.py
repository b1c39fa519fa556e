"""The small dual encoder that the training sets are compared with.

What belongs here: the network and its words. What does not: which pairs it is trained on. It is small
on purpose: it must show which training set is better, within minutes on a laptop, not be a good model.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIMENSION = 128  # of the joint space
_TEXT_WIDTH = 128
_GRAMS = 3  # words in a row that count as one term, at most
_MOST_TERMS = 96  # of a caption
_MOST_WORDS = 20_000
_LEAST_COUNT = 2
SHIFT_PX = 4
_FIRST_TEMPERATURE = 0.07
_WORD = re.compile(r"\w+|[^\w\s]")


class Vocabulary:
    """Words and short phrases that occur at least twice in the training captions, most frequent first."""

    def __init__(self, captions: Sequence[str]) -> None:
        counts = Counter(term for caption in captions for term in set(_terms(caption)))
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_WORDS]
        self.index = {term: at for at, (term, n) in enumerate(common, start=1) if n >= _LEAST_COUNT}

    def __len__(self) -> int:
        return len(self.index) + 1  # 0 is no term

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Term numbers, int64 [captions, 96], padded with 0; unknown terms are left out."""
        rows = np.zeros((len(captions), _MOST_TERMS), np.int64)
        for at, caption in enumerate(captions):
            known = [self.index[term] for term in _terms(caption) if term in self.index][:_MOST_TERMS]
            rows[at, : len(known)] = known
        return rows


def _terms(caption: str) -> list[str]:
    words = _WORD.findall(caption.lower())
    return [
        " ".join(words[start : start + size]) for size in range(1, _GRAMS + 1) for start in range(len(words) - size + 1)
    ]


class TextTower(nn.Module):
    """Term numbers [N, 96] to [N, DIMENSION]: mean of term vectors, then two layers."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.terms = nn.EmbeddingBag(terms, _TEXT_WIDTH, mode="mean", padding_idx=0)
        nn.init.normal_(self.terms.weight, std=0.1)
        self.project = nn.Sequential(
            nn.LayerNorm(_TEXT_WIDTH), nn.Linear(_TEXT_WIDTH, 256), nn.GELU(), nn.Linear(256, DIMENSION)
        )

    def forward(self, terms: Tensor) -> Tensor:
        return self.project(self.terms(terms))


class PixelTower(nn.Module):
    """Pixels uint8 [N, H, W, 3] to [N, DIMENSION]: four convolutions that keep places, then one layer."""

    def __init__(self, side: int) -> None:
        super().__init__()
        widths = (32, 64, 64, 96)
        self.body = nn.Sequential(
            nn.Conv2d(3, widths[0], 4, 4),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
            nn.Conv2d(widths[0], widths[1], 3, 1, 1),
            nn.BatchNorm2d(widths[1]),
            nn.ReLU(),
            nn.Conv2d(widths[1], widths[2], 3, 2, 1),
            nn.BatchNorm2d(widths[2]),
            nn.ReLU(),
            nn.Conv2d(widths[2], widths[3], 3, 2, 1),
            nn.BatchNorm2d(widths[3]),
            nn.ReLU(),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.project = nn.Linear(widths[3] * (side // 16) ** 2, DIMENSION)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        return self.project(self.body(images.contiguous(memory_format=torch.channels_last)).flatten(1))


def shifted(pixels: Tensor, down: int, right: int) -> Tensor:
    """Pictures [N, H, W, 3] moved by (4 - down, 4 - right) px, for training; edges are repeated.

    They are never mirrored, because left and right have meaning.
    """
    height, width = pixels.shape[1:3]
    rows = torch.arange(down - SHIFT_PX, down - SHIFT_PX + height).clamp(0, height - 1)
    columns = torch.arange(right - SHIFT_PX, right - SHIFT_PX + width).clamp(0, width - 1)
    return pixels[:, rows][:, :, columns]


class FeatureTower(nn.Module):
    """Frozen features float32 [N, F] to [N, DIMENSION]: two layers, for images or for captions."""

    def __init__(self, features: int, width: int = 512) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, width),
            nn.GELU(),
            nn.Linear(width, DIMENSION),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.project(features)


class DualEncoder(nn.Module):
    """An image tower and a text tower with one learned temperature, trained with InfoNCE.

    Source of the loss: Radford et al., Learning Transferable Visual Models From Natural Language
    Supervision (2021), figure 3; the scale is clamped at 100 as there.
    """

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.scale = nn.Parameter(torch.tensor(1 / _FIRST_TEMPERATURE).log())

    def loss(self, images: Tensor, texts: Tensor) -> Tensor:
        """Symmetric InfoNCE of B pairs, scalar; the other B - 1 captions and images are the negatives."""
        one, other = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        logits = self.scale.exp().clamp(max=100) * one @ other.T
        own = torch.arange(len(logits))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    @torch.inference_mode()
    def similarity(self, images: Tensor, texts: Tensor, batch: int = 256) -> np.ndarray:
        """Cosines, float32 [images, captions]."""
        self.eval()
        one = torch.cat([F.normalize(self.image(part), dim=1) for part in images.split(batch)])
        other = torch.cat([F.normalize(self.text(part), dim=1) for part in texts.split(batch)])
        return (one @ other.T).numpy()
