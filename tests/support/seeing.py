"""A reward model that sees: it knows the colour of a square and reads captions, by rules and not by training."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from compalign_dagster.reward.model import Outputs, RewardModel
from tests.support.tiny_reward import COLOURS, tiny_config

Rule = Callable[[np.ndarray, str], float]
"""Mean colour of the image, float [3] of 0 to 255, and the caption -> reward."""


def seen(colour: np.ndarray, text: str) -> float:
    """2 for the right colour, 1 for another, 0 for shop talk; a little less out of order or for a paler colour."""
    away = {name: float(np.abs(np.array(COLOURS[name][:2]) - colour[:2]).sum()) for name in COLOURS}
    nearest = min(away, key=lambda name: away[name])
    right = 2.0 if nearest in text else 1.0 if "square" in text else 0.0
    in_order = text.startswith("a ") and text.endswith(" square")
    return right - (0.0 if in_order else 0.3) - away[nearest] / 100


class Seeing(RewardModel):
    """Rewards by a rule; the cosine is the same rule, rounded."""

    name = "seeing"
    images_are_frozen = True

    def __init__(self, rule: Rule = seen) -> None:
        super().__init__()
        self.rule, self.config = rule, tiny_config()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @classmethod
    def build(cls, config, data):
        return cls()

    def prepare(self, image) -> Tensor:
        return torch.from_numpy(np.asarray(image.resize((16, 16))).copy())

    def encode_images(self, batch: Tensor) -> Tensor:
        return batch.float().mean((1, 2))[:, None]

    def forward(self, image_states, captions, image_index) -> Outputs:
        colours = image_states[image_index, 0].double().numpy()
        reward = torch.tensor([self.rule(colour, text) for colour, text in zip(colours, captions, strict=True)])
        return Outputs.of(reward, cosine=reward.round())

    def heads(self, image_states, captions, image_index):
        raise NotImplementedError

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, folder, config):
        raise NotImplementedError
