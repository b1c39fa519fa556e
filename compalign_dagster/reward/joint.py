"""The two halves of a joint image-text loss: contrast within a batch, and hard negatives for matching.

Captions that read the same are no negatives of each other: a crawl repeats its boilerplate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def same(captions: Sequence[str]) -> Tensor:
    """Bool [N, N]: which captions read the same, apart from case and spacing. The diagonal is True."""
    seen: dict[str, int] = {}
    codes = [seen.setdefault(" ".join(text.lower().split()), len(seen)) for text in captions]
    numbers = torch.tensor(codes)
    return numbers[:, None] == numbers[None, :]


def contrastive(logits: Tensor, alike: Tensor) -> Tensor:
    """Symmetric InfoNCE of logits [images, captions]; all captions alike share the target evenly. Scalar."""
    targets = alike.float()
    targets = targets / targets.sum(1, keepdim=True)
    by_image = -(targets * logits.log_softmax(1)).sum(1).mean()
    by_text = -(targets * logits.T.log_softmax(1)).sum(1).mean()
    return (by_image + by_text) / 2


def hard_negatives(logits: Tensor, alike: Tensor) -> Tensor:
    """For each row a column that is not alike, drawn by its softmax: near misses come often. Int64 [N].

    A row without any such column gets itself; callers label matches by `alike`, so it does no harm.
    """
    with torch.no_grad():
        weights = logits.float().softmax(1).masked_fill(alike, 0) + 1e-6 * (~alike)
        alone = weights.sum(1) == 0
        weights[alone] = torch.eye(len(weights), device=weights.device)[alone]
        return torch.multinomial(weights, 1).squeeze(1)
