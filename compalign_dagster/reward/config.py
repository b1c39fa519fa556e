"""What training a reward model can be told, with the defaults of each backbone and where they come from.

What belongs here: names, numbers and their sources. What does not: reading files or the environment,
and anything that needs torch. The paper gives none of these values: every source below stands in for
an unknown one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from compalign_dagster.errors import InputError

CODE_VERSION = 3  # of training: raise it when the same data and configuration give other bytes

IMAGEREWARD = "ImageReward's released training; unknown in the paper"
CYCLEREWARD = "CycleReward's released training; unknown in the paper"
BLIP = "BLIP's pre-training; unknown in the paper"
OURS = "our choice; unknown in the paper"
GIVEN = "given"

PRECISIONS = ("fp32", "bf16", "fp16")


class Default(NamedTuple):
    """A value and where it comes from."""

    value: Any
    source: str


def _of(value: Any, source: str = OURS) -> Any:
    return field(default=value, metadata={"source": source})


@dataclass(frozen=True)
class RewardConfig:
    """Everything that changes the bytes of a trained reward model, except its data."""

    backbone: str = _of("blip-tiny")
    model: str | None = _of(None)  # pretrained weights: a local folder or a hub id; None trains from scratch
    revision: str | None = _of(None)  # the commit of a hub id; required for one
    seed: int = _of(7)
    # shape; read only where the backbone is built from scratch
    image_size: int = _of(64)  # px, square; 0 (dual alone): that of the pretrained model
    patch_size: int = _of(16, BLIP)  # px
    hidden_size: int = _of(96)
    vision_layers: int = _of(2)
    text_layers: int = _of(2)
    heads: int = _of(3)
    dropout: float = _of(0.0)  # of the text encoder's states
    joint_size: int = _of(64)  # width of the joint space of the contrastive cosine
    vocabulary_size: int = _of(2000)
    max_caption_tokens: int = _of(40)  # longer captions are cut, and counted
    # stage 0: the joint space, from crawl pairs without human labels
    pretrain_steps: int = _of(0)
    pretrain_batch: int = _of(64)  # pairs
    pretrain_lr: float = _of(1e-3)
    crawl_pairs: int = _of(60_000)  # most pairs that a backbone learns from at once, without steps
    near_misses: bool = _of(False)  # captions with one word changed are among the negatives of matching
    shuffled_captions: float = _of(0.0)  # share of near misses, in both stages, that are all words in another order
    # stage 1: rewards, from human judgements and cross-image anchors
    steps: int = _of(150)
    batch_images: int = _of(32)  # judged images a step, with all of their captions
    accumulation: int = _of(1)  # such micro-batches (in stage 0: of pretrain_batch) in a step
    lr: float = _of(5e-4)
    head_lr: float = _of(0.0)  # of the reward head alone; 0: as `lr`
    weight_decay: float = _of(0.01)
    warmup: float = _of(0.1)  # share of the steps
    # the terms of the loss; 0 leaves one out
    preference_weight: float = _of(1.0)  # of comparisons within an image
    anchor_weight: float = _of(1.0)  # of captions of other images and hard negatives
    mismatches: int = _of(3)  # captions of other images that an image meets in a step
    hard_negatives: float = _of(0.5)  # of near misses and best-scoring mismatches, within the anchors
    rating_weight: float = _of(0.5)  # of a caption's mean rating, as a probability that it fits
    criteria_weight: float = _of(0.5)  # of the heads of single criteria
    labeler_weights: Mapping[str, float] = field(default_factory=dict, metadata={"source": OURS})  # others weigh 1
    joint_weight: float = _of(0.0)  # of the stage-0 loss, which keeps cosine and itm true during stage 1
    joint_every: int = _of(4)  # steps of stage 1 between two such losses
    frozen_share: float = _of(0.0)  # of the embeddings and lower layers, from the bottom, in stage 1
    validate_every: int = _of(25)  # steps
    patience: int = _of(0)  # validations without better preference accuracy before it stops; 0 never stops early
    precision: str = _of("fp32")  # of the forward pass in training: fp32, bf16 or fp16; weights are always fp32
    # the machine
    threads: int | None = _of(None)  # of torch on a CPU; None takes what it finds, and the bytes depend on that
    cache_mib: int = _of(512)  # prepared images or frozen image states kept between steps
    processes: int = _of(1)  # that share a step's micro-batches, each on a GPU of its own
    checkpoint_every: int = _of(200)  # steps between two checkpoints, where there is a folder for them

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for work keys and the training record."""
        return {**asdict(self), "labeler_weights": dict(self.labeler_weights)}


_FROZEN_FEATURES = "our choice: a few hundred judged images would spoil what pre-training knows"

DEFAULTS: dict[str, dict[str, Default]] = {
    # Small batches: a net this small, from scratch, learns more from many updates than from large ones. Two threads
    # are no faster than one on them, and many times slower where the machine has other work.
    "blip-tiny": {
        "threads": Default(1, OURS),
        "pretrain_steps": Default(1200, OURS),
        "pretrain_batch": Default(16, OURS),
        "near_misses": Default(True, OURS),
        "shuffled_captions": Default(0.3, "our choice: without any, so small a network reads bags of words"),
        "batch_images": Default(16, OURS),
        "steps": Default(200, OURS),
        "joint_weight": Default(0.5, OURS),
    },
    "blip": {
        "image_size": Default(224, IMAGEREWARD),
        "max_caption_tokens": Default(128, CYCLEREWARD + "; ImageReward's 35 is too short for web captions"),
        "steps": Default(2000, OURS),
        "batch_images": Default(8, IMAGEREWARD + ": 64 pairs are some 8 images of 5 captions"),
        "lr": Default(1e-5, IMAGEREWARD),
        "weight_decay": Default(0.0, CYCLEREWARD),
        "warmup": Default(0.0, IMAGEREWARD),
        "frozen_share": Default(0.7, IMAGEREWARD),
        "validate_every": Default(100, OURS),
        "cache_mib": Default(0, OURS),
    },
    "dual": {
        "image_size": Default(0, "the pretrained model's own"),
        "max_caption_tokens": Default(77, "CLIP's limit; a model with a lower one keeps its own"),
        "steps": Default(400, OURS),
        "lr": Default(1e-5, IMAGEREWARD),
        "head_lr": Default(1e-3, OURS),
        "frozen_share": Default(1.0, _FROZEN_FEATURES),
    },
    # The crawl is learned from in closed form; stage 1 moves a few hundred weights from a good start.
    "offline": {
        "image_size": Default(260, "EfficientNet-Lite2's own"),
        "max_caption_tokens": Default(128, OURS),
        "lr": Default(5e-3, OURS),
        "hard_negatives": Default(0.0, "our choice: sentence vectors hardly see one changed word"),
    },
}


def reward_config(settings: Mapping[str, Any] | None = None) -> RewardConfig:
    """The configuration these settings describe, over the defaults of their backbone.

    Raises `InputError` for an unknown backbone or setting, and for a value of the wrong kind or range.
    """
    given = dict(settings or {})
    backbone = given.get("backbone", RewardConfig.backbone)
    if not isinstance(backbone, str) or backbone not in DEFAULTS:
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
    defaults = {name: default.value for name, default in DEFAULTS[backbone].items()}
    config = RewardConfig(**{**defaults, **given})
    if not config.image_size and backbone != "dual":
        raise _wrong("image_size", "at least 1", 0)
    if not any((config.preference_weight, config.anchor_weight, config.rating_weight, config.criteria_weight)):
        raise _wrong("preference_weight", "at least one weight of a term above 0", "all are 0")
    for whole, part in (("hidden_size", "heads"), ("image_size", "patch_size")):
        if backbone == "blip-tiny" and getattr(config, whole) % getattr(config, part):
            raise _wrong(whole, f"a multiple of {part}", f"{getattr(config, whole)} and {getattr(config, part)}")
    if config.accumulation % config.processes:
        raise _wrong("accumulation", "a multiple of processes", f"{config.accumulation} and {config.processes}")
    return config


def sources(config: RewardConfig) -> dict[str, str]:
    """Where the value of every setting comes from; `GIVEN` for one that is not its backbone's default."""
    found = {}
    for item in fields(RewardConfig):
        plain = {} if item.name == "labeler_weights" else item.default
        default = DEFAULTS[config.backbone].get(item.name, Default(plain, item.metadata["source"]))
        found[item.name] = default.source if getattr(config, item.name) == default.value else GIVEN
    return found


def _checked(name: str, kind: Any, value: Any) -> Any:
    """`value` as the setting's type, in range."""
    if name == "labeler_weights":
        return _weights(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
        expected = f"a value of type {getattr(kind, '__name__', kind)}"
    elif name == "precision" and value not in PRECISIONS:
        expected = f"one of {', '.join(PRECISIONS)}"
    elif name in _SHARES and not 0 <= value <= 1:
        expected = "a number from 0 to 1"
    elif isinstance(value, int | float) and not _LEAST.get(name, 0) <= value < math.inf:
        expected = f"at least {_LEAST.get(name, 0)}"
    else:
        return value
    raise _wrong(name, expected, repr(value))


def _weights(value: Any) -> dict[str, float]:
    """A weight for each labeler named."""
    if isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(weight, int | float) and not isinstance(weight, bool)
        for name, weight in value.items()
    ):
        found = {name: float(weight) for name, weight in sorted(value.items())}
        if all(0 <= weight < math.inf for weight in found.values()):
            return found
    raise _wrong("labeler_weights", "names of labelers, each with a number of at least 0", repr(value)[:200])


def _wrong(name: str, expected: str, found: object) -> InputError:
    return InputError(
        f"reward setting {name!r}", expected=expected, found=str(found), remedy="Correct the configuration."
    )


_SHARES = {"warmup", "frozen_share", "dropout", "shuffled_captions"}
_LEAST = {"max_caption_tokens": 4} | dict.fromkeys(
    (
        *("patch_size", "hidden_size", "vision_layers", "text_layers", "heads", "joint_size"),
        *("accumulation", "processes", "checkpoint_every", "crawl_pairs"),
        *("threads", "vocabulary_size", "steps", "batch_images", "pretrain_batch", "validate_every", "joint_every"),
    ),
    1,
)


def table_markdown() -> str:
    """The page `docs/reward-settings.md`."""
    lines = [
        "# Settings of a reward model",
        "",
        "Made by `python -m compalign_dagster.reward.config`. These are the names that `compalign train --config FILE`",
        "takes, as JSON or TOML. The paper gives none of these values: all of them are unknown there, and each source",
        "says what stands in. What a model was trained with, and where that came from, is in its record and its card.",
        "",
        "| setting | default | source | of other backbones |",
        "| --- | --- | --- | --- |",
    ]
    for item in fields(RewardConfig):
        plain = {} if item.name == "labeler_weights" else item.default
        others = [
            f"{name} `{own[item.name].value}`: {_short(own[item.name].source)}"
            for name, own in DEFAULTS.items()
            if item.name in own
        ]
        lines.append(f"| `{item.name}` | `{plain}` | {_short(item.metadata['source'])} | {'<br>'.join(others)} |")
    return "\n".join(lines) + "\n"


def _short(source: str) -> str:
    return source.replace("; unknown in the paper", "")


if __name__ == "__main__":
    print(table_markdown(), end="")
