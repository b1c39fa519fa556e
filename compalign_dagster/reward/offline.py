"""The offline reward model: frozen encoders from wheels, a small joint head, a small reward head.

The joint head maps an image's features into the captions' own space, so that MiniLM's geometry is
kept; it learns from crawl pairs without human labels. The reward head reads only how the two
vectors agree, never the caption alone, so that length or fluency cannot be a shortcut and rewards
compare across images. What does not belong here: the frozen encoders (`offline_features.py`).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import TrainingData, texts
from compalign_dagster.reward.model import Outputs, RewardModel
from compalign_dagster.reward.offline_features import (
    IMAGE_FEATURES,
    TEXT_FEATURES,
    ImageNet,
    TextNet,
    check_weights,
    pixels,
    weights,
)
from compalign_dagster.reward.offline_memory import FeatureMemory

_HEADS, _FROZEN = "heads.safetensors", "frozen.json"
_CENTRE_CAPTIONS = 2000  # enough to place the centre of the captions' space
