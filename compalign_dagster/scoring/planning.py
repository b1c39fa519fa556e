"""Plans for a crawl: a random sample of each budget, scored by both models, and a threshold for each.

A plan is for the pairs of one budget, so each has a threshold of its own, and what it promises holds for each alone.
A budget whose plan says not to use a cascade is scored whole. What does not belong here: the arithmetic of one plan
(`cascade.py`), the policy (its fractions come as an argument), artifacts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.parquet import column
from compalign_dagster.scoring.cascade import BOUND, Plan, plan
from compalign_dagster.scoring.sampling import Sample, Source, draw_sample, together

CODE_VERSION = 1  # raise it when the same models and crawl give another sample or other plans

SAMPLE = pa.schema(
    [
        *(PAIRS.field(name) for name in ("pair_id", "shard", "key", "caption_index", "corpus")),
        column("budget", pa.string(), "the policy's budget that the corpus draws on"),
        column("cheap", pa.float64(), "reward of the cheap model; null where it has none", nullable=True),
        column("reward", pa.float64(), "reward of the promoted model; null where it has none", nullable=True),
    ]
)


@dataclass(frozen=True)
class Budget:
    """What is known of a budget before it is planned for."""

    sources: Sequence[Source]  # without scores: all pairs are to be drawn alike
    fraction: float  # of its pairs that are kept, by the policy
    cut: float | None = None  # least reward that was kept the last time; None where that is not known


def draw(budgets: Mapping[str, Budget], size: int, *, seed: int) -> tuple[Sample, list[str]]:
    """`size` pairs of each budget, drawn at random, and the budget of each; all of a smaller one."""
    samples = [draw_sample(budget.sources, size, seed=seed) for budget in budgets.values()]
    names = [name for name, sample in zip(budgets, samples, strict=True) for _ in range(len(sample.pairs))]
    return together(samples), names


def scored(sample: Sample, names: Sequence[str], cheap: np.ndarray, reward: np.ndarray) -> pa.Table:
    """The sample (SAMPLE) with both models' rewards, float64 [N], NaN where there is none."""
    columns: dict[str, Any] = {
        **{name: sample.pairs[name] for name in SAMPLE.names if name in PAIRS.names},
        "budget": pa.array(names, pa.string()),
        "cheap": pa.array(cheap, pa.float64(), mask=~np.isfinite(cheap)),
        "reward": pa.array(reward, pa.float64(), mask=~np.isfinite(reward)),
    }
    return pa.table([columns[name] for name in SAMPLE.names], schema=SAMPLE)


def plan_budgets(table: pa.Table, budgets: Mapping[str, Budget], *, bound: float = BOUND) -> dict[str, Plan]:
    """A plan for each budget from the scored sample; pairs that have no reward take no part.

    Rules and caps of a policy take pairs away before its fraction is counted off, which moves the cut down. So the
    fraction that is planned for is the share of the sample at or above the last cut, where that is more.
    """
    names = np.array(table["budget"].to_pylist(), object)
    cheap, reward = (table[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("cheap", "reward"))
    found = {}
    for name, budget in budgets.items():
        rows = (names == name) & np.isfinite(reward)
        above = reward[rows] >= budget.cut if budget.cut is not None else np.zeros(0)
        fraction = max(budget.fraction, float(above.mean()) if len(above) else 0.0)
        found[name] = plan(cheap[rows], reward[rows], fraction, bound=bound)
    return found
