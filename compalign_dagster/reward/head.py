"""The reward head: a small MLP from a fused image-text state to a reward and one score per criterion.

ImageReward's published head has its activations commented out and an initialisation that leaves the
reward constant, which stalls training at ln 2. This one has GELU between its layers and Xavier
weights, as CycleReward does.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

_WIDTHS = (1024, 128, 64, 16)  # of ImageReward, for states of width 768
_STATE = 768
_LEAST_WIDTH = 16


class RewardHead(nn.Module):
    """Five linear layers `state - 4/3 - 1/6 - 1/12 - 1/48 - outputs`, shares of the state's width.

    All outputs share the trunk and start as the same score: few images are rated, and criteria agree more
    than they differ. Drawn apart, a criterion may start opposed to the reward, whose gradients shape the trunk,
    and be so still when training stops.
    """

    def __init__(self, state: int, outputs: int) -> None:
        super().__init__()
        widths = [state, *(max(_LEAST_WIDTH, round(width * state / _STATE)) for width in _WIDTHS), outputs]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            linear = nn.Linear(wide, narrow)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        with torch.no_grad():
            linear.weight[:] = nn.init.xavier_uniform_(torch.empty(1, widths[-2]))
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, states: Tensor) -> Tensor:
        """States [N, D] to scores [N, outputs]."""
        with in_full(states):
            return self.layers(states.float())

    def features(self, states: Tensor) -> Tensor:
        """What the last layer reads of states [N, D], and a constant 1: every score is linear in these [N, K]."""
        with in_full(states):
            return with_constant(self.layers[:-1](states.float()))

    def last_layer(self) -> Tensor:
        """The weights [K] that make the first score of `features`."""
        last: Any = self.layers[-1]
        return torch.cat([last.weight[0], last.bias[:1]])


def in_full(states: Tensor) -> torch.autocast:
    """A context of full precision whatever the network before it has: rounded to bf16, close scores are ties."""
    return torch.autocast(states.device.type, enabled=False)


def with_constant(features: Tensor) -> Tensor:
    """Rows [N, K] with a 1 at the end."""
    return torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
