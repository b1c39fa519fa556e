"""Which judged images meet in a step, and how they flatten into one forward pass.

Orders are drawn from a generator seeded by the caller, so that training repeats.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from compalign_dagster.reward.data import JudgedImage
from compalign_dagster.reward.losses import PairBatch


def epochs(count: int, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Endless batches of indices below `count`; every index once an epoch, short tails joined to the next."""
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, count):
            waiting += rng.permutation(count).tolist()
        batch, waiting = waiting[:size], waiting[size:]
        yield list(dict.fromkeys(batch))


def flatten(images: Sequence[JudgedImage], mismatches: int) -> PairBatch:
    """One row for each own caption, then up to `mismatches` for each image: its neighbours' best captions.

    The mismatched captions are other images' best ones, so that no reading of the caption alone tells
    them apart. A neighbour whose best caption is also this image's is skipped.
    """
    captions: list[str] = []
    owner: list[int] = []
    first: list[int] = []
    for at, image in enumerate(images):
        first.append(len(captions))
        captions += image.captions
        owner += [at] * len(image.captions)
    better = [first[at] + row for at, image in enumerate(images) for row in image.better]
    worse = [first[at] + row for at, image in enumerate(images) for row in image.worse]
    judged = sum(1 for image in images if image.better)
    weight = [1 / (len(image.better) * judged) for image in images for _ in image.better]
    top = [first[at] + row for at, image in enumerate(images) for row in image.top]
    own = len(captions)
    for at, image in enumerate(images):
        for step in range(1, min(mismatches, len(images) - 1) + 1):
            other = images[(at + step) % len(images)]
            borrowed = [other.captions[row] for row in other.top if other.captions[row] not in image.captions]
            if borrowed:
                captions.append(borrowed[step % len(borrowed)])
                owner.append(at)
    return PairBatch(
        captions=captions,
        image_index=torch.tensor(owner, dtype=torch.int64),
        better=torch.tensor(better, dtype=torch.int64),
        worse=torch.tensor(worse, dtype=torch.int64),
        weight=torch.tensor(weight, dtype=torch.float32),
        top=torch.tensor(top, dtype=torch.int64),
        mismatched=torch.arange(own, len(captions)),
    )
