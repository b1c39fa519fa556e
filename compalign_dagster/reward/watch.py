"""Validations while a model trains: which was the best, when to stop, and the alarm at ln 2.

What belongs here: what the figures decide. What does not: computing them (`objective.py`).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from compalign_dagster.reward.losses import stuck

ALARM_AFTER = 3  # validations at ln 2 in a row

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """The validations of a training, in order, and the weights of the best.

    The best has the highest preference accuracy, and among equals the lowest total loss; where nothing is
    compared, the lowest loss. `patience` is how many validations in a row may bring no better accuracy; 0 never
    stops.
    """

    patience: int = 0
    validations: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, entry: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take in a validation: `step`, `preference`, `total`, `accuracy` (None where nothing is compared)."""
        best = self.best
        self.validations.append(entry)
        if best is None or _worth(entry) > _worth(best):
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        before = self.validations[-ALARM_AFTER - 1 : -ALARM_AFTER]
        if len(self.validations) >= ALARM_AFTER and self.at_ln2 and not _all_stuck(before):
            logger.warning(
                "validation loss has stayed at ln 2 for %d validations, to step %d: "
                "the model does not tell captions apart",
                ALARM_AFTER,
                entry["step"],
            )

    @property
    def best(self) -> dict[str, Any] | None:
        """The best validation; the earliest of equals."""
        return max(self.validations, key=_worth, default=None)

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        if not self.patience or not self.validations:
            return False
        accuracies = [_accuracy(entry) for entry in self.validations]
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= self.patience

    @property
    def at_ln2(self) -> bool:
        """Whether the last validations, at most `ALARM_AFTER`, were all at ln 2."""
        return _all_stuck(self.validations[-ALARM_AFTER:])


def _all_stuck(entries: list[dict[str, Any]]) -> bool:
    return bool(entries) and all(entry["preference"] is not None and stuck(entry["preference"]) for entry in entries)


def _accuracy(entry: Mapping[str, Any]) -> float:
    return -1.0 if entry["accuracy"] is None else float(entry["accuracy"])


def _worth(entry: Mapping[str, Any]) -> tuple[float, float]:
    return _accuracy(entry), -float(entry["total"])
