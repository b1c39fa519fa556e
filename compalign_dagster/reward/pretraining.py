"""Stage 0: the joint space, from crawl pairs and no human label.

A backbone trained from scratch must first see what words mean; one with pretrained weights may skip
this. What does not belong here: the joint loss itself, which is the backbone's, and the loop (`training.py`).
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor, nn

from compalign_dagster.fitting import Order, reseed
from compalign_dagster.reward.data import CrawlPair, TrainingData
from compalign_dagster.reward.loading import ImageLoader, states_of
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.reward.nearmiss import Substitutes

_DRAW, _DROPOUT = 0x4E, 0x4A  # so that numbers drawn for different ends differ


def crawl_pairs(data: TrainingData, *, limit: int, seed: int) -> tuple[list[CrawlPair], int]:
    """At most `limit` pairs of the crawl, drawn by seed, and how many were held back for the evaluation.

    Pairs whose image was judged and lies outside the training split are never seen in training.
    """
    held = data.images.filter(pc.not_equal(data.images["split"], pa.scalar("train")))["image_id"].combine_chunks()
    table = data.crawl.select(["shard", "image_offset", "image_length", "caption", "image_sha256"])
    free: np.ndarray = np.flatnonzero(~pc.is_in(table["image_sha256"], value_set=held).to_numpy())
    held_back = len(table) - len(free)
    if len(free) > limit:
        drawn = np.random.default_rng(seed).choice(len(free), size=limit, replace=False)
        free = free[np.sort(drawn)]
    rows = table.take(free).to_pylist()
    pairs = [((row["shard"], row["image_offset"], row["image_length"]), row["caption"]) for row in rows]
    return pairs, held_back


class JointLoss(nn.Module):
    """The joint loss of micro-batch `number` of crawl pairs: a function of the seed and that number."""

    def __init__(self, model: RewardModel, images: ImageLoader, pairs: list[CrawlPair]) -> None:
        super().__init__()
        config = model.config
        self.model, self.images, self.pairs, self.seed = model, images, pairs, config.seed
        self.order = Order(len(pairs), config.pretrain_batch, config.seed)
        self.substitutes = (
            Substitutes((caption for _, caption in pairs), shuffled=config.shuffled_captions)
            if config.near_misses
            else None
        )

    def forward(self, number: int) -> Tensor:
        """A scalar."""
        chosen = [self.pairs[at] for at in self.order.at(number)]
        captions = [caption for _, caption in chosen]
        reseed(self.seed, _DROPOUT, number)
        states = states_of(self.model, self.images, [place for place, _ in chosen])
        if self.substitutes is None:
            return self.model.joint_loss(states, captions)
        draw = np.random.default_rng([self.seed, _DRAW, number])
        wrong = [self.substitutes.near_miss(caption, draw) for caption in captions]
        return self.model.joint_loss(states, captions, wrong)
