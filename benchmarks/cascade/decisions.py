"""How well plans made on samples keep their promise in the crawl they were drawn from.

What belongs here: reading a home's scores, planning, comparing with the full decision. What does not: time.
"""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from compalign_dagster.scoring.cascade import Drawn, audit, keeps, plan, rejects, wrong_share

CHEAP = ("cosine", "itm", "label_free")
FRACTIONS = (0.1, 0.3)
SAMPLES = (1_000, 3_000)
AUDITED = 2_000


def measure(home: Path, *, rounds: int, bound: float) -> list[dict[str, Any]]:
    """One row per cheap score, keep fraction and sample size: over `rounds` samples, what plans save and change."""
    scores = read(home)
    found = []
    for name in CHEAP:
        if name not in scores.columns or scores[name].null_count() == scores.height:
            continue
        cheap, reward = (scores[column].to_numpy().astype(np.float64) for column in (name, "reward"))
        for fraction in FRACTIONS:
            for size in SAMPLES:
                rows = [_one(cheap, reward, fraction, bound, size, seed) for seed in range(rounds)]
                found.append(
                    {
                        "home": home.name,
                        "pairs": len(reward),
                        "cheap": name,
                        "spearman": _spearman(cheap, reward),
                        "fraction": fraction,
                        "sample": size,
                        "bound": bound,
                        "rounds": rounds,
                        **{key: [row[key] for row in rows] for key in rows[0]},
                    }
                )
    return found


def read(home: Path) -> pl.DataFrame:
    """The scores of a home's newest ledger, in the order in which the selection breaks ties."""
    from compalign_dagster import latest, parquet
    from compalign_dagster.store import LocalStore

    store = LocalStore(home / "store")
    rows = parquet.read(latest.require(store, "score_ledger").fetch("ledger.parquet")).to_pylist()
    rows = [row for row in rows if row["model_version"] == rows[0]["model_version"]]  # the promoted one comes first
    tables = [pl.read_parquet(store.fetch(row["scores_key"])) for row in rows]
    return pl.concat(tables, how="diagonal").sort("pair_id", "shard", "key", "caption_index")


def _one(
    cheap: np.ndarray, reward: np.ndarray, fraction: float, bound: float, size: int, seed: int
) -> dict[str, float | bool | None]:
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(reward))[:size]
    made = plan(cheap[rows], reward[rows], fraction, bound=bound)
    rejected = rejects(cheap, made.reject_below)
    count = round(fraction * len(reward))
    cut = float(reward[keeps(reward, rejected, count)].min())
    audited = generator.permutation(reward[rejected])[:AUDITED]
    seen = audit([Drawn.of(audited, cut, int(rejected.sum()))], pairs=len(reward), bound=bound)
    return {
        "used": made.reject_below is not None,
        "passes": float((~rejected).mean()),
        "wrong": wrong_share(reward, rejected, fraction),
        "audit_passed": seen.passed,
        "audit_high": seen.wrong.high,
    }


def _spearman(cheap: np.ndarray, reward: np.ndarray) -> float:
    from compalign_dagster.statistics import spearman

    known = ~np.isnan(cheap)
    return spearman(cheap[known], reward[known])


def summary(row: dict[str, Any]) -> dict[str, float]:
    """Medians over the rounds, and the share of rounds above the bound."""
    return {
        "used": float(np.mean(row["used"])),
        "passes": median(row["passes"]),
        "wrong": median(row["wrong"]),
        "most_wrong": max(row["wrong"]),
        "over": float(np.mean([wrong > row["bound"] for wrong in row["wrong"]])),
        "audits_passed": float(np.mean(row["audit_passed"])),
    }
