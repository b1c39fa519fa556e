"""How the judged images of a step flatten into one forward pass."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.losses import PairBatch
from compalign_dagster.reward.metrics import people_accept


def flatten(
    images: Sequence[JudgedImage], mismatches: int, near_miss: Callable[[str], str | None] | None = None
) -> PairBatch:
    """One row for each own caption, then up to `mismatches` for each image: its neighbours' best captions.

    The mismatched captions are other images' best ones, so that a reading of the caption alone hardly tells
    them apart: where people refuse even the best, it is lent and yet never shown as right. Lending accepted
    captions alone did worse within images (docs/anchors.md). A neighbour whose best caption is also this image's
    is skipped. `near_miss` gives each best caption a wrong twin, or None where it knows none.
    """
    first = [0, *accumulate(len(image.captions) for image in images)]
    captions = [text for image in images for text in image.captions]
    owner = [at for at, image in enumerate(images) for _ in image.captions]
    own = len(captions)
    top = [first[at] + row for at, image in enumerate(images) for row in image.top if people_accept(image, row)]
    for at, image in enumerate(images):
        for step in range(1, min(mismatches, len(images) - 1) + 1):
            other = images[(at + step) % len(images)]
            borrowed = [other.captions[row] for row in other.top if other.captions[row] not in image.captions]
            if borrowed:
                captions.append(borrowed[step % len(borrowed)])
                owner.append(at)
    met = len(captions)
    twins = [(row, near_miss(captions[row])) for row in top] if near_miss else []
    twins = [(row, text) for row, text in twins if text is not None and text not in images[owner[row]].captions]
    captions += [str(text) for _, text in twins]
    owner += [owner[row] for row, _ in twins]
    ratings = np.full((len(captions), len(CRITERIA)), np.nan, np.float32)
    trust = np.zeros(len(captions), np.float32)
    for at, image in enumerate(images):
        ratings[first[at] : first[at + 1]] = image.ratings
        trust[first[at] : first[at + 1]] = image.trust
    return PairBatch(
        captions=captions,
        image_index=_rows(owner),
        better=_rows(first[at] + row for at, image in enumerate(images) for row in image.better),
        worse=_rows(first[at] + row for at, image in enumerate(images) for row in image.worse),
        weight=torch.tensor([weight for image in images for weight in image.weight], dtype=torch.float32),
        top=_rows(top),
        mismatched=torch.arange(own, met),
        near=torch.arange(met, len(captions)),
        origin=_rows(row for row, _ in twins),
        ratings=torch.from_numpy(ratings),
        trust=torch.from_numpy(trust),
    )


def _rows(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
