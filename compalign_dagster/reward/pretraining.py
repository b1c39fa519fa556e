"""Stage 0: the joint space, from crawl pairs and no human label.

A backbone trained from scratch must first see what words mean; one with pretrained weights may skip
this. What does not belong here: the joint loss itself, which is the backbone's.
"""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from compalign_dagster.fitting import fit
from compalign_dagster.reward.batches import epochs
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.loading import ImageLoader, Place, states_of
from compalign_dagster.reward.model import Progress, RewardModel
from compalign_dagster.reward.nearmiss import Substitutes

logger = logging.getLogger(__name__)

CrawlPair = tuple[Place, str]


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


class JointLoss:
    """Callable without arguments: the joint loss of the next batch of crawl pairs."""

    def __init__(self, model: RewardModel, images: ImageLoader, pairs: list[CrawlPair], batch: int, seed: int) -> None:
        self.model, self.images, self.pairs = model, images, pairs
        self.rng = np.random.default_rng(seed)
        self.order = epochs(len(pairs), batch, self.rng)
        wanted = model.config.near_misses
        self.substitutes = Substitutes(caption for _, caption in pairs) if wanted else None

    def __call__(self) -> Tensor:
        chosen = [self.pairs[at] for at in next(self.order)]
        captions = [caption for _, caption in chosen]
        states = states_of(self.model, self.images, [place for place, _ in chosen])
        if self.substitutes is None:
            return self.model.joint_loss(states, captions)
        wrong = [self.substitutes.near_miss(caption, self.rng) for caption in captions]
        return self.model.joint_loss(states, captions, wrong)


def pretrain(model: RewardModel, joint: JointLoss, *, progress: Progress) -> list[float]:
    """Train everything on the joint loss for the configured steps; return the loss of every step."""
    config = model.config

    def on_step(step: int, loss: float) -> None:
        progress(step + 1, config.pretrain_steps, "pre-training steps")
        if (step + 1) % 50 == 0:
            logger.info("pre-training step %d of %d: loss %.3f", step + 1, config.pretrain_steps, loss)

    model.train()
    return fit(
        [value for value in model.parameters() if value.requires_grad],
        lambda step: joint(),
        steps=config.pretrain_steps,
        lr=config.pretrain_lr,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        on_step=on_step,
    )
