"""Training a reward model: stage 0 on crawl pairs, stage 1 on human judgements, held-out figures.

On a CPU the same configuration, data and number of threads give the same bytes, whether or not the training was
killed and went on from a checkpoint. What does not belong here: how a stage runs (`stages.py`), the terms of the loss
(`objective.py`), processes (`workers.py`), the networks, where models are kept.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compalign_dagster.compute import pick_device
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import InputError
from compalign_dagster.fitting import Order, cpu_threads, seed_everything
from compalign_dagster.reward.calibration import fit_calibration, human_yes
from compalign_dagster.reward.checkpoints import Checkpoints
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import CrawlPair, JudgedImage, TrainingData, judged_images
from compalign_dagster.reward.learning import learn
from compalign_dagster.reward.loading import ImageLoader, loader_for
from compalign_dagster.reward.metrics import Known, baseline_scores, held_out_metrics, score_rows
from compalign_dagster.reward.model import Progress, RewardModel, backbone, no_progress
from compalign_dagster.reward.objective import Objective
from compalign_dagster.reward.pretraining import JointLoss, crawl_pairs
from compalign_dagster.reward.record import data_version, record_of, work_of
from compalign_dagster.reward.stages import PRETRAIN, Stages
from compalign_dagster.reward.uncertainty import fit_posterior
from compalign_dagster.reward.workers import together
from compalign_dagster.store import open_store

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A trained model in evaluation mode, its held-out figures, and how it came about."""

    model: RewardModel
    metrics: dict[str, Any]
    record: dict[str, Any]
    seconds: float  # wall time; kept apart so that the record repeats
    before: Known  # scores without human labels of the held-out images, from before stage 1
    checkpoints: Checkpoints | None = None

    def discard_checkpoints(self) -> None:
        """To be called once the model is safe."""
        if self.checkpoints:
            self.checkpoints.clear()


def train(
    config: RewardConfig,
    data: TrainingData,
    *,
    device: str = "cpu",
    progress: Progress = no_progress,
    checkpoints: Path | None = None,
) -> Trained:
    """Train a reward model as `config` says, or go on from the newest checkpoint of just this in `checkpoints`.

    Raises `InputError` when no image of the training split has an untied comparison or when the device cannot do what
    `config` asks for, and `CompalignError` when the untrained rewards do not differ (such a model cannot learn).
    """
    device = pick_device(device)

    def lead(accelerator: "Accelerator") -> Trained:
        return _train(accelerator, config, data, device, progress, checkpoints)

    places = {name: (shard.store.url, shard.key, shard.stamp) for name, shard in data.shards.items()}
    arguments = (config, replace(data, shards={}), places, device, checkpoints)
    with cpu_threads(config.threads):
        return together(lead, _follow, arguments, config=config, device=device)


def _follow(
    accelerator: "Accelerator",
    config: RewardConfig,
    data: TrainingData,
    places: Mapping[str, tuple[str, str, str | None]],
    device: str,
    checkpoints: Path | None,
) -> None:
    """What every process but the first does: the same, without validating or writing."""
    shards = {name: Shard(name, open_store(url), key, stamp) for name, (url, key, stamp) in places.items()}
    with cpu_threads(config.threads):
        _train(accelerator, config, replace(data, shards=shards), device, no_progress, checkpoints)


def _train(
    accelerator: "Accelerator",
    config: RewardConfig,
    data: TrainingData,
    device: str,
    progress: Progress,
    folder: Path | None,
) -> Trained:
    started = time.monotonic()
    seed_everything(config.seed)
    splits = {split: judged_images(data, split, config.labeler_weights) for split in ("train", "validation")}
    splits["test"] = judged_images(data, "test")  # the same questions to every model, whomever it learned from
    _count(splits)
    _refuse_no_joint_space(config)
    model = backbone(config.backbone).build(config, data).to(accelerator.device)
    images = loader_for(model, data.shards, config.cache_mib)
    leading = accelerator.is_main_process
    splits = {
        split: _readable(found, images, progress) if leading or split == "train" else []
        for split, found in splits.items()
    }
    counts = _count(splits)
    pairs = _crawl(config, model, images, data, counts, progress)
    if model.reads_crawl and pairs:
        drawn = Order(len(pairs), config.crawl_pairs, config.seed).at(0)
        model.learn_crawl(images, [pairs[at] for at in sorted(drawn)], progress=progress)

    version = data_version(data)
    kept = Checkpoints(folder, work_of(config, version, device)) if folder else None
    stages = Stages(model, accelerator, progress, kept)
    joint = JointLoss(model, images, pairs) if config.pretrain_steps or config.joint_weight else None
    if joint and stages.due(PRETRAIN):
        stages.facts[PRETRAIN] = stages.run(
            PRETRAIN,
            joint,
            [value for value in model.parameters() if value.requires_grad],
            steps=config.pretrain_steps,
            lr=config.pretrain_lr,
        )
    if leading and "before" not in stages.facts:
        found = [baseline_scores(model, images, splits[split]) for split in ("validation", "test")]
        stages.facts["before"] = [
            [name, *place, value] for part in found for name, row in part.items() for place, value in row.items()
        ]
    objective = Objective(model, images, splits["train"])
    stages.facts.setdefault("start", model.last_layer().tolist())
    watch, curves = learn(stages, objective, splits, joint)
    model.eval()
    if not leading:
        return Trained(model, {}, {}, 0.0, {})

    _calibrate(model, images, splits["validation"], data)
    fitted = fit_posterior(
        objective, objective.useful(splits["train"]), splits["validation"], torch.tensor(stages.facts["start"])
    )
    before: dict[str, dict[tuple[str, str], float]] = {}
    for name, image_id, caption, value in stages.facts["before"]:
        before.setdefault(name, {})[image_id, caption] = value
    metrics = held_out_metrics(model, images, splits["test"], seed=config.seed, before=before)
    metrics["validation_loss"] = watch.best["preference"] if watch.best else None
    metrics["validation_accuracy"] = watch.best["accuracy"] if watch.best else None
    metrics["validation_stuck_at_ln2"] = watch.at_ln2
    counts |= _over_long(model, splits, pairs) | {"images_rejected": len(images.rejected)}
    curves |= {PRETRAIN: stages.facts.get(PRETRAIN, [])}
    record = record_of(model, data, version, counts, curves, images.rejected)
    if fitted:
        model.posterior.factor.copy_(fitted.factor)
        record["uncertainty"] = {"precision": fitted.precision, "effective_weights": fitted.effective_weights}
    seconds = time.monotonic() - started
    logger.info("trained %s in %.0f s", model.name, seconds)
    return Trained(model, metrics, record, seconds, before, kept)


def _refuse_no_joint_space(config: RewardConfig) -> None:
    """Raise `InputError` where the joint loss is asked of a backbone that has none."""
    for setting in ("pretrain_steps", "joint_weight"):
        if getattr(config, setting) and backbone(config.backbone).joint_loss is RewardModel.joint_loss:
            raise InputError(
                f"reward setting {setting!r}",
                expected=f"0 for the backbone {config.backbone}, which trains no joint space",
                found=str(getattr(config, setting)),
                remedy="Leave it out, or choose another backbone.",
            )


def _crawl(
    config: RewardConfig,
    model: RewardModel,
    images: ImageLoader,
    data: TrainingData,
    counts: dict[str, int],
    progress: Progress,
) -> list[CrawlPair]:
    """Crawl pairs for all that learns from them, in the order drawn, those with a readable image."""
    stepped = config.pretrain_steps or config.joint_weight
    limit = (config.pretrain_steps + config.steps) * config.pretrain_batch * config.accumulation if stepped else 0
    limit = max(limit, config.crawl_pairs if model.reads_crawl else 0)
    if not limit:
        return []
    pairs, counts["crawl_held_back"] = crawl_pairs(data, limit=limit, seed=config.seed)
    usable = images.usable((place for place, _ in pairs), progress, "crawl images")
    pairs = [pair for pair in pairs if pair[0] in usable]
    counts["crawl_pairs"] = len(pairs)
    if not pairs:
        raise InputError(
            f"what {model.name} learns from before it meets judgements",
            expected="crawl pairs with readable images",
            found="none",
            remedy="Give shards of pairs that nobody judged; with pretrained weights, set pretrain_steps 0.",
        )
    return pairs


def _calibrate(model: RewardModel, images: ImageLoader, split: list[JudgedImage], data: TrainingData) -> None:
    """From rewards to what people say of held-out captions, where anybody rated them."""
    said = human_yes(data.ranks, [image.image_id for image in split])
    rows = [
        (at, text, *said[image.image_id, caption_id])
        for at, image in enumerate(split)
        for caption_id, text in zip(image.caption_ids, image.captions, strict=True)
        if (image.image_id, caption_id) in said
    ]
    if not rows:
        return
    index, texts, yes, weight = zip(*rows, strict=True)
    rewards = score_rows(model, images, split, torch.tensor(index).numpy(), list(texts))["reward"]
    fitted = fit_calibration(rewards, torch.tensor(yes).numpy(), torch.tensor(weight).numpy())
    model.calibration.copy_(torch.tensor(fitted, dtype=torch.float64))


def over_long(model: RewardModel, captions: Sequence[str]) -> int:
    """How many captions the model reads only the beginning of."""
    return sum(count > model.config.max_caption_tokens for count in model.token_counts(captions))


def _over_long(
    model: RewardModel, splits: Mapping[str, list[JudgedImage]], pairs: Sequence[CrawlPair]
) -> dict[str, int]:
    judged = [text for found in splits.values() for image in found for text in image.captions]
    return {
        "judged_captions_over_long": over_long(model, judged),
        "crawl_captions_over_long": over_long(model, [caption for _, caption in pairs]),
    }


def _readable(found: list[JudgedImage], images: ImageLoader, progress: Progress) -> list[JudgedImage]:
    usable = images.usable((image.place for image in found), progress, "judged images")
    return [image for image in found if image.place in usable]


def _count(splits: Mapping[str, list[JudgedImage]]) -> dict[str, int]:
    """What there is to learn from and to measure by. `InputError` where nothing can be learned."""
    if not any(image.better for image in splits["train"]):
        raise InputError(
            "training data",
            expected="at least one untied comparison of a readable image in the training split",
            found=f"{len(splits['train'])} images, none of them",
            remedy="Add judgements; images are split 80/10/10.",
        )
    counts = {}
    for split, found in splits.items():
        counts[f"{split}_images"] = len(found)
        counts[f"{split}_comparisons"] = sum(len(image.better) for image in found)
        counts[f"{split}_ties_dropped"] = sum(image.ties for image in found)
        counts[f"{split}_rated_captions"] = sum(trust > 0 for image in found for trust in image.trust)
    return counts
