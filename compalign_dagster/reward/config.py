"""What training a reward model can be told, with the defaults of each backbone.

What belongs here: names, numbers and where they come from. What does not: reading files or the
environment, and anything that needs torch. The paper gives none of these values; those of `blip`
follow its closest open relative (ImageReward), those of the others were tuned on this project's data.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from compalign_dagster.errors import InputError

CODE_VERSION = 1  # of training: raise it when the same data and configuration give other bytes


@dataclass(frozen=True)
class RewardConfig:
    """Everything that changes the bytes of a trained reward model, except its data."""

    backbone: str = "blip-tiny"
    model: str | None = None  # pretrained weights: a local folder or a hub id; None trains from scratch
    revision: str | None = None  # the commit of a hub id; required for one
    seed: int = 7
    # shape; read only where the backbone is built from scratch
    image_size: int = 64  # px, square
    patch_size: int = 16  # px
    hidden_size: int = 96
    vision_layers: int = 2
    text_layers: int = 2
    heads: int = 3
    dropout: float = 0.0  # of the text encoder's states
    joint_size: int = 64  # width of the joint space of the contrastive cosine
    vocabulary_size: int = 2000
    max_caption_tokens: int = 40
    # stage 0: the joint space, from crawl pairs without human labels
    pretrain_steps: int = 0
    pretrain_batch: int = 64  # pairs
    pretrain_lr: float = 1e-3
    near_misses: bool = False  # captions with one word changed are among the negatives of matching
    # stage 1: rewards, from human comparisons and cross-image anchors
    steps: int = 150
    batch_images: int = 32  # judged images a step, with all of their captions
    lr: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps
    anchor_weight: float = 1.0  # of the cross-image terms, against 1 for the comparisons
    joint_weight: float = 0.0  # of the stage-0 loss, which keeps cosine and itm true during stage 1
    joint_every: int = 4  # steps of stage 1 between two such losses
    frozen_share: float = 0.0  # of the embeddings and lower layers, from the bottom, in stage 1
    validate_every: int = 25  # steps
    # the machine
    threads: int | None = None  # of torch on a CPU; None takes what it finds, and the bytes then depend on that
    cache_mib: int = 512  # prepared images or frozen image states kept between steps

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for work keys and the training record."""
        return asdict(self)


DEFAULTS: dict[str, dict[str, Any]] = {
    # Small batches: a net this small, from scratch, learns more from many updates than from large ones. Two threads
    # are no faster than one on them, and many times slower where the machine has other work.
    "blip-tiny": {
        "threads": 1,
        "pretrain_steps": 1200,
        "pretrain_batch": 16,
        "near_misses": True,
        "batch_images": 16,
        "steps": 200,
        "joint_weight": 0.5,
    },
    # ImageReward: 70 % frozen, lr 1e-5, cosine; 35 tokens there is too short for web captions.
    "blip": {
        "image_size": 224,
        "max_caption_tokens": 128,
        "steps": 2000,
        "batch_images": 8,
        "lr": 1e-5,
        "weight_decay": 0.0,
        "warmup": 0.0,
        "frozen_share": 0.7,
        "validate_every": 100,
        "cache_mib": 0,
    },
    # Stage 0 sees 30,000 pairs about five times; stage 1 moves a few hundred weights from a good start.
    "offline": {"image_size": 260, "max_caption_tokens": 128, "pretrain_steps": 1200, "lr": 5e-3},
}


def reward_config(settings: Mapping[str, Any] | None = None) -> RewardConfig:
    """The configuration these settings describe, over the defaults of their backbone.

    Raises `InputError` for an unknown backbone or setting, and for a value of the wrong kind or range.
    """
    given = dict(settings or {})
    backbone = given.get("backbone", RewardConfig.backbone)
    if backbone not in DEFAULTS:
        raise InputError(
            "setting backbone",
            expected=f"one of {', '.join(DEFAULTS)}",
            found=repr(backbone),
            remedy="Choose one.",
        )
    known = {field.name: field.type for field in fields(RewardConfig)}
    for name, value in given.items():
        if name not in known:
            raise InputError(
                f"reward setting {name!r}",
                expected=f"one of {', '.join(sorted(known))}",
                found="an unknown name",
                remedy="Correct the name or remove it.",
            )
        given[name] = _checked(name, known[name], value)
    config = RewardConfig(**{**DEFAULTS[backbone], **given})
    for whole, part in (("hidden_size", "heads"), ("image_size", "patch_size")):
        if backbone == "blip-tiny" and getattr(config, whole) % getattr(config, part):
            raise InputError(
                f"reward setting {whole!r}",
                expected=f"a multiple of {part}",
                found=f"{getattr(config, whole)} and {getattr(config, part)}",
                remedy="Correct the configuration.",
            )
    return config


def _checked(name: str, kind: Any, value: Any) -> Any:
    """`value` as the setting's type, in range."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
        expected = f"a value of type {getattr(kind, '__name__', kind)}"
    elif name in _SHARES and not 0 <= value <= 1:
        expected = "a number from 0 to 1"
    elif isinstance(value, int | float) and value < _LEAST.get(name, 0):
        expected = f"at least {_LEAST.get(name, 0)}"
    else:
        return value
    raise InputError(
        f"reward setting {name!r}", expected=expected, found=repr(value), remedy="Correct the configuration."
    )


_SHARES = {"warmup", "frozen_share", "dropout"}
_LEAST = {"max_caption_tokens": 4} | dict.fromkeys(
    (
        *("image_size", "patch_size", "hidden_size", "vision_layers", "text_layers", "heads", "joint_size"),
        *("threads", "vocabulary_size", "steps", "batch_images", "pretrain_batch", "validate_every", "joint_every"),
    ),
    1,
)
