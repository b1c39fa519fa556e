"""The profiles: named sets of defaults, each value with where it comes from.

What belongs here: values. What does not: what a setting means (`settings.py`).
"""

from decimal import Decimal
from typing import Any, NamedTuple


class Default(NamedTuple):
    """A profile's value for a setting, and why it is that value."""

    value: Any
    provenance: str


_UNKNOWN = "the paper does not say; taken from ImageReward's published training script"
_CHOICE = "our choice"

PROFILES: dict[str, dict[str, Default]] = {
    "sample": {
        "backbone": Default("blip-tiny", "small enough to train from scratch on a laptop"),
        "keep_fraction": Default(Decimal("0.30"), "the paper's method figure: top 30 % by reward"),
        "settle_seconds": Default(5, "the sample's shards are renamed into place whole"),
        "batch_wait_minutes": Default(0, "a sample is there to be watched"),
        "arrival_sweep_minutes": Default(0, "a few shards are listed in no time"),
        "refilter_wait_seconds": Default(5, "a sample is there to be watched"),
    },
    "photos": {
        "batch_wait_minutes": Default(0, "a photo crawl lands whole"),
        "backbone": Default("offline", "encoders inside PyPI wheels: no model hub needed"),
        "min_gain": Default(
            -0.10,
            "50 held-out images have intervals of this width: the gate refuses what is clearly worse than the "
            "baselines and cannot show that a model is better",
        ),
        "shortcuts_told": Default(
            ["shuffled_words"],
            "sentence vectors that stay frozen tell little of the order of words, and 50 images cannot show so little",
        ),
        "evaluation_steps": Default(360, "30,000 pairs need more steps than the sample's 4,000"),
        "keep_fraction": Default(Decimal("0.30"), "the paper's method figure: top 30 % by reward"),
    },
    "paper": {
        "backbone": Default("blip", "BLIP-L reward model; unknown in the paper, as in ImageReward"),
        "model": Default("Salesforce/blip-itm-large-coco", "BLIP ViT-L with ITM head; unknown in the paper"),
        "keep_fraction": Default(Decimal("0.10"), "about 90 % compression, the paper's abstract (raw LAION)"),
        "keep_per_corpus": Default(
            {"cc3m": Decimal("0.30"), "cc12m": Decimal("0.30")},
            "method figure's 30 %; the split between corpora is unknown, 130M to 15.5M fits it",
        ),
        "image_size": Default(224, _UNKNOWN),
        "caption_tokens": Default(35, _UNKNOWN + " (35 tokens, short for web captions)"),
        "learning_rate": Default(1e-5, _UNKNOWN),
        "frozen_share": Default(0.7, _UNKNOWN),
        "batch_images": Default(4, _UNKNOWN + ": batches of 4 on a GPU"),
        "accumulation": Default(2, _UNKNOWN + ": 64 pairs in an update (4 GPUs x 4 x 4), some 8 images of 5 captions"),
        "train_precision": Default("bf16", _CHOICE + "; weights stay fp32, and so do all reported figures"),
        "patience": Default(5, "CycleReward's released training; unknown in the paper"),
        "pretrain_steps": Default(0, "the backbone comes pre-trained"),
        "train_steps": Default(1000, _UNKNOWN + ": 10 epochs, over 800 images; cosine schedule without warm-up"),
        "evaluation_encoder": Default("blip-b16", "BLIP-B/16, the paper's abstract; not trained by this release"),
        "evaluation_steps": Default(100_000, "unknown in the paper; set it to your budget"),
        "device": Default("cuda", _CHOICE),
    },
}
