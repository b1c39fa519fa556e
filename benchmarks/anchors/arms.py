"""The arms: the terms of the loss that a training has, from the same start on the same images.

What belongs here: which trainings there are. Stage 0 runs once and the arms read what it taught from a folder, because
it sees the crawl alone, of which no image is judged. What does not: what is said of an arm (`figures.py`).
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.anchors.figures import compare
from benchmarks.anchors.network import free_backbone
from benchmarks.evidence.__main__ import ABLATIONS
from benchmarks.evidence.pack import Pack, of_source
from compalign_dagster.evaluation.crossval import fold_tables, out_of_fold
from compalign_dagster.evaluation.held_out import HeldOut, score_held_out
from compalign_dagster.reward.blip import BlipReward
from compalign_dagster.reward.config import RewardConfig, reward_config
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.reward.training import train

ALL = "all terms"
ARMS: dict[str, Mapping[str, float]] = {
    ALL: {},
    **{name.removeprefix("reward, "): changed for name, changed in ABLATIONS.items()},
    "comparisons and anchors": {"rating_weight": 0, "criteria_weight": 0},
}
FEW = {name: ARMS[name] for name in (ALL, "no anchors", "comparisons and anchors", "comparisons alone")}
FREE_CRAWL = 3000  # images: reading them is most of the time that stage 0 takes
FREE_STAGE_0 = {"pretrain_steps": 240, "pretrain_batch": 256}
BLIP_STAGE_0 = {"backbone": "blip-tiny", "pretrain_steps": 1000, "pretrain_batch": 32}
BLIP = {  # what the small network of stage 0 needs other than a BLIP of full size
    "backbone": "blip",
    "lr": 5e-4,
    "frozen_share": 0.0,
    "steps": 200,
    "batch_images": 16,
    "validate_every": 20,
    "threads": 1,
    "cache_mib": 512,
}

log = logging.getLogger("benchmarks.anchors")


def measure_free(
    pack: Pack,
    work: Path,
    arms: Mapping[str, Mapping[str, float]],
    *,
    folds: int,
    seed: int,
    changed: Mapping[str, Any],
    stage_0: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Arms of the free head, cross-validated: from scratch, or from towers that stage 0 taught."""
    expert = of_source(pack.data, ["expert"])
    settings = {"backbone": "free", "seed": seed, **changed}
    judged = replace(expert, crawl=expert.crawl.slice(0, 0))  # nothing but stage 0 needs it
    scores: dict[str, np.ndarray] = {}
    minutes: dict[str, float] = {}
    held: HeldOut | None = None
    with free_backbone():
        if stage_0:
            begun = time.monotonic()
            _stage_0({**settings, **stage_0}, expert).save(work)
            settings["model"] = str(work)
            minutes["stage 0"] = _minutes(begun)
        for name, terms in arms.items():
            begun = time.monotonic()
            scored = out_of_fold(_config(settings, terms), judged, folds=folds, matched=pack.own_captions).held
            assert held is None or scored.rows == held.rows, f"{name} scored other rows"
            held, scores[name] = scored, scored.scores["reward"]
            minutes[name] = _minutes(begun)
            log.info("free, %s: %.1f minutes", name, minutes[name])
    assert held is not None
    return {"network": "Free head", "start": "after stage 0" if stage_0 else "from scratch", "folds": folds,
            "images": len(held.images), "train_images": len(held.images) * (folds - 1) // folds,
            "config": dict(changed), "stage_0": stage_0, "crawl_images": _crawl_images(expert),
            "arms": compare(held, expert, scores, ALL, seed=seed), "minutes": minutes}  # fmt: skip


def measure_blip(
    pack: Pack,
    work: Path,
    *,
    seed: int,
    changed: Mapping[str, Any],
    stage_0: Mapping[str, Any],
) -> dict[str, Any]:
    """The arms of a small BLIP, fine-tuned from the folder that its stage 0 left, on one split by image."""
    expert = of_source(pack.data, ["expert"])
    data = replace(expert, images=fold_tables(expert.images, 3, seed=seed)[0])
    begun = time.monotonic()
    learned = _stage_0({**stage_0, "seed": seed}, data)
    assert isinstance(learned, BlipReward)
    learned.blip.save_pretrained(work)
    learned.tokenizer.save_pretrained(work)
    minutes = {"stage 0": _minutes(begun)}
    settings: dict[str, Any] = {
        "image_size": learned.config.image_size,
        "max_caption_tokens": learned.config.max_caption_tokens,
    }
    settings |= {"seed": seed, "model": str(work), **changed}
    arms: dict[str, np.ndarray] = {}
    curves: dict[str, Any] = {}
    for name, terms in FEW.items():
        begun = time.monotonic()
        trained = train(_config(settings, terms), data)
        held = score_held_out(
            trained.model, data, seed=seed, before=trained.before, matched=pack.own_captions, probes=0
        )
        arms[name] = held.scores["reward"]
        curves[name] = trained.record["curves"]["validation"]
        minutes[name] = _minutes(begun)
        log.info("blip, %s: %.1f minutes", name, minutes[name])
    return {"network": "BLIP, small", "start": "after stage 0", "folds": 1, "images": len(held.images),
            "train_images": data.images.num_rows - len(held.images), "config": dict(changed), "stage_0": stage_0,
            "parameters": sum(value.numel() for value in learned.parameters()), "crawl_images": _crawl_images(data),
            "arms": compare(held, data, arms, ALL, seed=seed), "curves": curves, "minutes": minutes}  # fmt: skip


def _stage_0(settings: Mapping[str, Any], data: TrainingData) -> RewardModel:
    """The product's own stage 0; one step of stage 1 at learning rate 0 follows it and moves nothing."""
    still = {"steps": 1, "lr": 0, "joint_weight": 0}
    return train(reward_config({**settings, **still}), data).model


def _config(settings: Mapping[str, Any], terms: Mapping[str, float]) -> RewardConfig:
    return reward_config({**settings, **terms})


def _crawl_images(data: TrainingData) -> int:
    return len(set(data.crawl["image_sha256"].to_pylist()))


def _minutes(begun: float) -> float:
    return round((time.monotonic() - begun) / 60, 2)
