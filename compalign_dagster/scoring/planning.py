"""Plans for a crawl: a random sample of each budget, scored by both models, and a threshold for each.

A plan is for the pairs of one budget, so each has a threshold of its own, and what it promises holds for each alone.
A budget whose plan says not to use a cascade is scored whole. What does not belong here: the arithmetic of one plan
(`cascade.py`), the policy (its fractions come as an argument), artifacts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import IndexedShard
from compalign_dagster.crawl.shards import corpus_of
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.parquet import column
from compalign_dagster.scoring import cascade
from compalign_dagster.scoring.cascade import BOUND, Plan, plan
from compalign_dagster.scoring.sampling import Sample, Source, draw_sample, together
from compalign_dagster.store import Store

Score = Callable[[Sample], tuple[np.ndarray, float, Any]]
"""A model over a sample: rewards, float64 [N], NaN where there is none; seconds; what was refused."""

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


def by_budget(shards: Iterable[IndexedShard], budget_of: Callable[[str], str]) -> dict[str, list[IndexedShard]]:
    """The shards of each budget, by its name; `budget_of` a corpus is the policy's."""
    found: dict[str, list[IndexedShard]] = {}
    for item in shards:
        found.setdefault(budget_of(corpus_of(item.shard)), []).append(item)
    return dict(sorted(found.items()))


def budgets_of(
    store: Store,
    shards: Iterable[IndexedShard],
    budget_of: Callable[[str], str],
    count_of: Callable[[str, int], int],
    cuts: Mapping[str, float],
) -> dict[str, Budget]:
    """The budgets that have pairs; `count_of` says how many of so many are kept, `cuts` are the last ones."""
    found = {}
    for name, items in by_budget(shards, budget_of).items():
        pairs = sum(item.pairs for item in items)
        if pairs:
            sources = [Source(item.shard, store.fetch(item.pairs_key)) for item in items]
            found[name] = Budget(sources, count_of(name, pairs) / pairs, cuts.get(name))
    return found


def plan_crawl(
    budgets: Mapping[str, Budget], cheap: Score, promoted: Score, *, size: int, seed: int, bound: float
) -> tuple[pa.Table, dict[str, Plan], float | None]:
    """A sample (SAMPLE), a plan for each budget from it, and the cheap model's time as a share of the other's."""
    sample, names = draw(budgets, size, seed=seed)
    low, cheap_seconds, _ = cheap(sample)
    reward, seconds, _ = promoted(sample)
    table = scored(sample, names, low, reward)
    time = cheap_seconds / seconds if seconds and np.isfinite(reward).any() else None
    return table, plan_budgets(table, budgets, bound=bound), time


def report_on(
    plans: Mapping[str, Plan],
    time: float | None,
    shards: Mapping[str, Sequence[IndexedShard]],
    cheap: Artifact,
    model: Artifact,
) -> dict[str, Any]:
    """What adopting, people and checks need, as JSON values: thresholds by corpus, and figures of the whole crawl.

    `shards` are those of each budget.
    """
    pairs = {name: sum(item.pairs for item in shards[name]) for name in plans}
    passes, wrong = cascade.together(plans, pairs)
    return {
        "model_version": model.facts["model_version"],
        "cheap": cheap.manifest_key,
        "cheap_version": cheap.facts["model_version"],
        "plans": {name: made.as_dict() for name, made in plans.items()},
        "reject_below": {
            corpus: made.reject_below
            for name, made in plans.items()
            for corpus in sorted({corpus_of(item.shard) for item in shards[name]})
            if made.reject_below is not None
        },
        "pairs": sum(pairs.values()),
        "passes": passes,
        "wrong": wrong.as_dict(),
        "time": None if time is None else passes + time,
    }


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
