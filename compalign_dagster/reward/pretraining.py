"""Stage 0: the joint space, from crawl pairs and no human label.

A backbone trained from scratch must first see what words mean; one with pretrained weights may skip
this. What does not belong here: the joint loss itself, which is the backbone's.
"""

import logging

import numpy as np
import pyarrow as pa
from torch import Tensor

from compalign_dagster.fitting import fit
from compalign_dagster.reward.batches import epochs
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.loading import ImageLoader, Place, states_of
from compalign_dagster.reward.model import Progress, RewardModel

logger = logging.getLogger(__name__)

CrawlPair = tuple[Place, str]


def crawl_pairs(data: TrainingData, *, limit: int, seed: int) -> tuple[list[CrawlPair], int]:
    """At most `limit` pairs of the crawl, drawn by seed, and how many were held back for the evaluation.

    Pairs whose image was judged and lies outside the training split are never seen in training.
    """
    images = data.images
    held = {
        image_id
        for image_id, split in zip(images["image_id"].to_pylist(), images["split"].to_pylist(), strict=True)
        if split != "train"
    }
    columns = ["shard", "image_offset", "image_length", "caption", "image_sha256"]
    table = data.crawl.select(columns)
    free = [at for at, digest in enumerate(table["image_sha256"].to_pylist()) if digest not in held]
    held_back = len(table) - len(free)
    if len(free) > limit:
        drawn = np.random.default_rng(seed).choice(len(free), size=limit, replace=False)
        free = [free[at] for at in sorted(drawn.tolist())]
    rows = table.take(pa.array(free, pa.int64())).to_pylist()
    pairs = [((row["shard"], row["image_offset"], row["image_length"]), row["caption"]) for row in rows]
    return pairs, held_back


def joint_batches(
    model: RewardModel, images: ImageLoader, pairs: list[CrawlPair], *, batch: int, seed: int
) -> "JointLoss":
    """The joint loss of one batch after another."""
    return JointLoss(model, images, pairs, batch, seed)


class JointLoss:
    """Callable without arguments: the joint loss of the next batch of crawl pairs."""

    def __init__(
        self, model: RewardModel, images: ImageLoader, pairs: list[CrawlPair], batch: int, seed: int
    ) -> None:
        self.model, self.images, self.pairs = model, images, pairs
        self.order = epochs(len(pairs), batch, np.random.default_rng(seed))

    def __call__(self) -> Tensor:
        chosen = [self.pairs[at] for at in next(self.order)]
        states = states_of(self.model, self.images, [place for place, _ in chosen])
        return self.model.joint_loss(states, [caption for _, caption in chosen])


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
