"""How far a faster way to score may lie from the reference (fp32, one thread, whole images), and how far it does.

What does not belong here: what makes it faster, approximations that are chosen on purpose (a cascade).
"""

from dataclasses import dataclass

import numpy as np

from compalign_dagster.statistics import spearman

LEAST_CORRELATION = 0.999
MOST_CHANGED = 0.001


@dataclass(frozen=True)
class Difference:
    """Two scorings of the same pairs: rank correlation, and the share of keep-or-drop decisions that changed."""

    correlation: float
    changed: float

    @property
    def tolerated(self) -> bool:
        """Whether one may stand for the other."""
        return self.correlation >= LEAST_CORRELATION and self.changed <= MOST_CHANGED


def difference(reference: np.ndarray, other: np.ndarray, keep: float) -> Difference:
    """Rewards float [N] of the same pairs in the same order, of which the best `keep` (a share, 0 to 1) are kept.

    A cut inside of equal rewards keeps the first of them in both.
    """
    if len(reference) != len(other):
        raise ValueError(f"{len(reference)} and {len(other)} rewards are not of the same pairs")
    changed = np.mean(_kept(reference, keep) != _kept(other, keep)) if len(reference) else 0.0
    return Difference(spearman(reference, other), float(changed))


def _kept(reward: np.ndarray, keep: float) -> np.ndarray:
    found = np.zeros(len(reward), bool)
    found[np.argsort(-reward, kind="stable")[: round(keep * len(reward))]] = True
    return found
