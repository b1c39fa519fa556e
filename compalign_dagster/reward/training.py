"""Training a reward model: stage 0 on crawl pairs, stage 1 on human comparisons, held-out figures.

On a CPU the same configuration, data and number of threads give the same bytes. What does not belong
here: batches (`batches.py`), losses (`losses.py`), the networks, where models are kept.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from compalign_dagster.compute import pick_device
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.fitting import cpu_threads, fit, seed_everything
from compalign_dagster.reward.batches import epochs, flatten
from compalign_dagster.reward.config import CODE_VERSION, RewardConfig
from compalign_dagster.reward.data import JudgedImage, TrainingData, judged_images
from compalign_dagster.reward.loading import ImageLoader, loader_for, states_of
from compalign_dagster.reward.losses import anchor_loss, preference_loss, spread, stuck
from compalign_dagster.reward.metrics import held_out_metrics
from compalign_dagster.reward.model import Progress, RewardModel, backbone, no_progress
from compalign_dagster.reward.pretraining import JointLoss, crawl_pairs, pretrain

logger = logging.getLogger(__name__)

LEAST_SPREAD = 1e-3
_MISMATCHES = 3  # mismatched captions an image meets in a step


@dataclass(frozen=True)
class Trained:
    """A trained model in evaluation mode, its held-out figures, and how it came about."""

    model: RewardModel
    metrics: dict[str, Any]
    record: dict[str, Any]
    seconds: float  # wall time; kept apart so that the record repeats


@dataclass(frozen=True)
class Validation:
    """Losses on the validation split, each a mean over images."""

    preference: float
    anchor: float


def train(
    config: RewardConfig, data: TrainingData, *, device: str = "cpu", progress: Progress = no_progress
) -> Trained:
    """Train a reward model as `config` says.

    Raises `InputError` when no image of the training split has an untied comparison, and
    `CompalignError` when the untrained rewards do not differ (such a model cannot learn).
    """
    with cpu_threads(config.threads):
        return _train(config, data, device, progress)


def _train(config: RewardConfig, data: TrainingData, device: str, progress: Progress) -> Trained:
    started = time.monotonic()
    seed_everything(config.seed)
    splits = {split: judged_images(data, split) for split in ("train", "validation", "test")}
    counts = _count(splits)
    if not counts["train_comparisons"]:
        raise InputError(
            "training data",
            expected="at least one untied comparison of an image in the training split",
            found=f"{len(splits['train'])} images, none of them",
            remedy="Add judgements; images are split 80/10/10.",
        )
    model = backbone(config.backbone).build(config, data).to(pick_device(device))
    images = loader_for(model, data.shards, config.cache_mib)
    splits = {split: _readable(found, images, progress) for split, found in splits.items()}
    curves: dict[str, Any] = {}

    joint = None
    if config.pretrain_steps or config.joint_weight:
        limit = (config.pretrain_steps + config.steps) * config.pretrain_batch
        pairs, counts["crawl_held_back"] = crawl_pairs(data, limit=limit, seed=config.seed)
        usable = images.usable((place for place, _ in pairs), progress, "crawl images")
        pairs = [pair for pair in pairs if pair[0] in usable]
        counts["crawl_pairs"] = len(pairs)
        if not pairs:
            raise InputError(
                "pre-training",
                expected="crawl pairs",
                found="none",
                remedy="Give shards, or set pretrain_steps 0.",
            )
        counts["crawl_captions_over_long"] = over_long(model, [caption for _, caption in pairs])
        joint = JointLoss(model, images, pairs, config.pretrain_batch, config.seed)
        curves["pretrain"] = pretrain(model, joint, progress=progress)
    counts["judged_captions_over_long"] = over_long(
        model, [text for found in splits.values() for image in found for text in image.captions]
    )
    counts["images_rejected"] = len(images.rejected)

    curves |= _learn(model, images, splits["train"], splits["validation"], joint, progress)
    model.eval()
    metrics = held_out_metrics(model, images, splits["test"], seed=config.seed)
    best = curves["best"]
    metrics["validation_loss"] = best["preference"] if best else None
    metrics["validation_stuck_at_ln2"] = curves["stuck_at_ln2"]
    record = {
        "code_version": CODE_VERSION,
        "config": config.as_dict(),
        "counts": counts,
        "curves": curves,
        "provenance": model.provenance(),
        "rejected_images": [
            {"shard": place[0], "offset": place[1], "reason": reason}
            for place, reason in sorted(images.rejected.items())
        ],
        "environment": {
            "device": model.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    seconds = time.monotonic() - started
    logger.info("trained %s in %.0f s", model.name, seconds)
    return Trained(model, metrics, record, seconds)


def over_long(model: RewardModel, captions: list[str]) -> int:
    """How many captions the model reads only the beginning of."""
    return sum(count > model.config.max_caption_tokens for count in model.token_counts(captions))


def _learn(
    model: RewardModel,
    images: ImageLoader,
    train_split: list[JudgedImage],
    validation_split: list[JudgedImage],
    joint: JointLoss | None,
    progress: Progress,
) -> dict[str, Any]:
    """Stage 1. Leaves the weights of the best validation in the model and returns the curves."""
    config = model.config
    useful = [image for image in train_split if image.better]
    order = epochs(len(useful), config.batch_images, np.random.default_rng(config.seed))
    _check_spread(model, images, useful[: config.batch_images])
    validations: list[dict[str, float]] = []
    best: dict[str, Any] | None = None
    weights: dict[str, Tensor] = {}

    def loss_of(step: int) -> Tensor:
        preference, anchor = _losses(model, images, [useful[at] for at in next(order)])
        loss = preference + config.anchor_weight * anchor
        due = joint is not None and config.joint_weight and step % config.joint_every == 0
        return loss + config.joint_weight * joint() if joint and due else loss

    def on_step(step: int, loss: float) -> None:
        nonlocal best, weights
        done = step + 1
        progress(done, config.steps, "training steps")
        if not validation_split or (done % config.validate_every and done != config.steps):
            return
        found = validate(model, images, validation_split)
        model.train()
        total = found.preference + config.anchor_weight * found.anchor
        entry = {"step": done, "preference": found.preference, "anchor": found.anchor, "total": total}
        validations.append(entry)
        logger.info("training step %d of %d: validation loss %.4f", done, config.steps, found.preference)
        if best is None or total < best["total"]:
            best = entry
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    model.train()
    curve = fit(
        model.parameter_groups(config.frozen_share),
        loss_of,
        steps=config.steps,
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        on_step=on_step,
    )
    if weights:
        model.load_state_dict(weights)
    alarm = bool(validations) and all(stuck(entry["preference"]) for entry in validations)
    if alarm:
        logger.warning("validation loss stayed at ln 2: the model does not tell captions apart")
    return {"train": curve, "validation": validations, "best": best, "stuck_at_ln2": alarm}


def validate(model: RewardModel, images: ImageLoader, split: list[JudgedImage]) -> Validation:
    """Mean losses over a split, in batches of fixed order."""
    model.eval()
    size = max(2, model.config.batch_images)
    totals = np.zeros(3)
    with torch.inference_mode():
        for start in range(0, len(split), size):
            group = split[start : start + size]
            preference, anchor = _losses(model, images, group)
            totals += np.array([float(preference) * len(group), float(anchor) * len(group), len(group)])
    return Validation(float(totals[0] / totals[2]), float(totals[1] / totals[2]))


def _losses(model: RewardModel, images: ImageLoader, group: list[JudgedImage]) -> tuple[Tensor, Tensor]:
    batch = flatten(group, _MISMATCHES)
    states = states_of(model, images, [image.place for image in group])
    rewards = model.rewards(states, batch.captions, batch.image_index).cpu()
    return preference_loss(rewards, batch), anchor_loss(rewards, batch)


def _check_spread(model: RewardModel, images: ImageLoader, group: list[JudgedImage]) -> None:
    """A head that gives every pair one reward never leaves ln 2."""
    model.eval()
    batch = flatten(group, _MISMATCHES)
    with torch.inference_mode():
        states = states_of(model, images, [image.place for image in group])
        found = spread(model.rewards(states, batch.captions, batch.image_index))
    if found <= LEAST_SPREAD:
        raise CompalignError(
            "rewards before training",
            expected=f"a standard deviation above {LEAST_SPREAD}",
            found=f"{found:.2g}",
            remedy="Check the head's initialisation, the pretrained weights and the images.",
        )


def _readable(found: list[JudgedImage], images: ImageLoader, progress: Progress) -> list[JudgedImage]:
    usable = images.usable((image.place for image in found), progress, "judged images")
    return [image for image in found if image.place in usable]


def _count(splits: dict[str, list[JudgedImage]]) -> dict[str, int]:
    counts = {}
    for split, found in splits.items():
        counts[f"{split}_images"] = len(found)
        counts[f"{split}_comparisons"] = sum(len(image.better) for image in found)
        counts[f"{split}_ties_dropped"] = sum(image.ties for image in found)
    return counts
