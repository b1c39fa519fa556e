"""The two halves of a joint image-text loss: contrast within a batch, and hard negatives for matching.

Captions that read the same are no negatives of each other: a crawl repeats its boilerplate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def same(captions: Sequence[str]) -> Tensor:
    """Bool [N, N]: which captions read the same, apart from case and spacing. The diagonal is True."""
    seen: dict[str, int] = {}
    codes = [seen.setdefault(" ".join(text.lower().split()), len(seen)) for text in captions]
    numbers = torch.tensor(codes)
    return numbers[:, None] == numbers[None, :]


def contrastive(logits: Tensor, alike: Tensor) -> Tensor:
    """Symmetric InfoNCE of logits [N images, N captions]; all captions alike share the target evenly. Scalar.

    Further columns, [N, N + M], are captions without an image: negatives of the images alone.
    """
    count = len(logits)
    targets = alike.float()
    by_image = -(targets / targets.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    square = targets[:, :count]
    by_text = -(square / square.sum(1, keepdim=True) * logits[:, :count].T.log_softmax(1)).sum(1).mean()
    return (by_image + by_text) / 2


def sigmoid_contrast(logits: Tensor, alike: Tensor) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343) of logits [N images, N + M captions]. Scalar.

    Each image and caption is a question of its own; what reads like the image's own caption is not asked.
    """
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    asked = own | ~alike
    return (F.softplus(torch.where(own, -logits, logits)) * asked).sum() / len(logits)


def hard_negatives(logits: Tensor, alike: Tensor) -> Tensor:
    """For each row a column that is not alike, drawn by its softmax: near misses come often. Int64 [N].

    A row without any such column gets itself; callers label matches by `alike`, so it does no harm.
    """
    with torch.no_grad():
        weights = logits.float().softmax(1).masked_fill(alike, 0) + 1e-6 * (~alike)
        alone = weights.sum(1) == 0
        weights[alone] = torch.eye(len(weights), device=weights.device)[alone]
        return torch.multinomial(weights, 1).squeeze(1)
