"""A shadow run: what a candidate would do to a crawl, measured on a sample before anyone says yes.

What belongs here: scoring the sample, and what the two models' rewards say of it. What does not: drawing
it (`sampling.py`), the policy (its fractions come as an argument), artifacts, pages.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from compalign_dagster.crawl.shards import Shard
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.errors import InputError
from compalign_dagster.parquet import column
from compalign_dagster.scoring.sampling import Sample, places_of
from compalign_dagster.statistics import Estimate, bootstrap_over, kendall_tau_b, spearman

CODE_VERSION = 1  # raise it when the same models and crawl give another sample or other figures
REST = "*"  # the budget of corpora without a fraction of their own
ENTERS, LEAVES, STAYS, OUT = "enters", "leaves", "stays", "stays out"
_BINS = 40
_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SECONDS_PER_HOUR = 3600

SAMPLE = pa.schema(
    [
        *(PAIRS.field(name) for name in ("pair_id", "shard", "key", "caption_index", "caption", "corpus")),
        *(PAIRS.field(name) for name in ("image_offset", "image_length")),
        column("weight", pa.float64(), "pairs of the crawl that this one stands for"),
        column("decile", pa.int32(), "tenth of its corpus by the promoted model's reward, 0 is lowest", nullable=True),
        column("reward_promoted", pa.float64(), "by the promoted model; null where there is none", nullable=True),
        column("reward_candidate", pa.float64(), "by the candidate; null where it could not be scored", nullable=True),
        column("change", pa.string(), "enters, leaves, stays or stays out of the kept set", nullable=True),
    ]
)

log = logging.getLogger(__name__)


def score_sample(
    model: Any, model_version: str, sample: Sample, shards: Mapping[str, Shard], config: Any = None
) -> tuple[np.ndarray, float, dict[str, int]]:
    """Rewards of the sampled pairs, float64 [N] (NaN where refused), seconds, and refusals by reason.

    `config` is a `ScoringConfig`. A shard that cannot be read, or is another one by now, costs its pairs.
    """
    from compalign_dagster.scoring.engine import Scorer, ScoringConfig
    from compalign_dagster.store import ObjectChangedError, ObjectMissingError

    scorer = Scorer(model, model_version, config or ScoringConfig())
    reward, seconds = np.full(len(sample.pairs), np.nan), 0.0
    refused: Counter[str] = Counter()
    names = np.array(sample.pairs["shard"].to_pylist(), object)
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        pairs = sample.pairs.take(rows)
        try:
            found = scorer.score(shards[name], pairs)
        except (InputError, ObjectChangedError, ObjectMissingError) as error:
            log.warning("shadow run: %d pairs left out: %s", len(rows), error)
            refused["shard_changed"] += len(rows)
            continue
        seconds += found.seconds
        refused.update(map(str, found.quarantine["reason"].to_pylist()))
        by_place = dict(zip(places_of(found.scores), found.scores["reward"].to_pylist(), strict=True))
        reward[rows] = [by_place.get(place, np.nan) for place in places_of(pairs)]
    return reward, seconds, dict(refused)


def compare(
    sample: Sample, candidate: np.ndarray, promoted: np.ndarray | None, fractions: Mapping[str, float], *, seed: int
) -> tuple[pa.Table, dict[str, Any]]:
    """The sample with both rewards and what changes (SAMPLE), and the figures, as JSON values.

    `candidate` and `promoted` are rewards [N], NaN where a pair could not be scored; those pairs take part
    in no figure. `fractions` are the keep fractions by corpus, `REST` that of all others.
    """
    both = np.isfinite(candidate) & (True if promoted is None else np.isfinite(promoted))
    rows = np.flatnonzero(both)
    corpora = sample.pairs["corpus"].to_pylist()
    budget = np.array([name if name in fractions else REST for name in corpora], object)[rows]
    weight = sample.weight[rows]
    keeps = kept(candidate[rows], weight, budget, fractions)
    change = np.full(len(candidate), None, object)
    facts: dict[str, Any] = {"compared": len(rows), "candidate_rewards": _distribution(candidate[rows], keeps)}
    if promoted is not None:
        kept_now = kept(promoted[rows], weight, budget, fractions)
        change[rows] = np.select([keeps & ~kept_now, ~keeps & kept_now, keeps], [ENTERS, LEAVES, STAYS], OUT)
        facts["promoted_rewards"] = _distribution(promoted[rows], kept_now)
        facts |= _churn(sample, rows, candidate, promoted, budget, fractions, seed)
        for name in (ENTERS, LEAVES):
            at = change[rows] == name
            facts[name] = {"pairs": int(at.sum()), "of_the_crawl": round(float(weight[at].sum()))}
    columns = {
        **{name: sample.pairs[name] for name in SAMPLE.names if name in PAIRS.names},
        "weight": pa.array(sample.weight),
        "decile": pa.array(sample.decile, pa.int32(), mask=sample.decile < 0),
        "reward_promoted": _nullable(np.full(len(candidate), np.nan) if promoted is None else promoted),
        "reward_candidate": _nullable(candidate),
        "change": pa.array(change.tolist(), pa.string()),
    }
    return pa.Table.from_pydict({name: columns[name] for name in SAMPLE.names}, schema=SAMPLE), facts


def kept(reward: np.ndarray, weight: np.ndarray, budget: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """Which rows lie in the best share of their budget, bool [N]; with equal weights exactly the policy's count."""
    found = np.zeros(len(reward), bool)
    for name in set(budget.tolist()):
        rows = np.flatnonzero(budget == name)
        order = rows[np.argsort(-reward[rows], kind="stable")]
        middle = np.cumsum(weight[order]) - weight[order] / 2
        found[order] = middle <= fractions[name] * weight[rows].sum() * (1 + 1e-12)
    return found


def galleries(table: pa.Table, most: int) -> dict[str, list[dict[str, Any]]]:
    """Pairs worth a look, at most `most` each: what enters and leaves, by the largest change of rank.

    Without a promoted model: the best and the worst by the candidate.
    """
    rows = [row for row in table.to_pylist() if row["reward_candidate"] is not None]
    by_candidate = sorted(rows, key=lambda row: -row["reward_candidate"])
    if all(row["reward_promoted"] is None for row in rows):
        return {"best": by_candidate[:most], "worst": by_candidate[::-1][:most]}
    rows = [row for row in rows if row["reward_promoted"] is not None]
    old = {id(row): at for at, row in enumerate(sorted(rows, key=lambda row: -row["reward_promoted"]))}
    new = {id(row): at for at, row in enumerate(row for row in by_candidate if id(row) in old)}
    moved = sorted(rows, key=lambda row: new[id(row)] - old[id(row)])  # those that rise most come first
    return {
        ENTERS: [row for row in moved if row["change"] == ENTERS][:most],
        LEAVES: [row for row in moved[::-1] if row["change"] == LEAVES][:most],
    }


def cost_of_rescoring(pairs: int, seconds: float, scored: int) -> dict[str, float | int | None]:
    """Hours that one device needs for the whole crawl at the measured pace."""
    pace = seconds / scored if scored else None
    hours = None if pace is None else pairs * pace / _SECONDS_PER_HOUR
    return {"pairs": pairs, "seconds_per_pair": pace, "hours": hours}


def summary(report: Mapping[str, Any]) -> list[str]:
    """The report in a few lines of text."""
    cost = report["cost"]
    lines = [
        f"shadow run of model {report['candidate'][:12]} on {report['sampled']:,} of {report['population']:,} pairs, "
        f"{report['strata']} strata; {sum(report['refused'].values()):,} could not be scored"
    ]
    if report["promoted"] is None:
        lines.append("no model is promoted yet: nothing to compare with")
    else:
        lines += [
            f"  against model {report['promoted'][:12]}",
            *(f"  {name.replace('_', ' ')}: {_said(report[name])}" for name in ("spearman", "kendall_tau_b")),
            f"  of the kept share, {_said(report['kept_overlap'])} is kept by both",
            *(
                f"  {name} the kept set: {report[name]['pairs']:,} of the sample, "
                f"about {report[name]['of_the_crawl']:,} of the crawl"
                for name in (ENTERS, LEAVES)
            ),
        ]
    if cost["hours"] is not None:
        lines.append(
            f"  a full re-score: {cost['pairs']:,} pairs x {cost['seconds_per_pair']:.4f} s = {cost['hours']:.3g} "
            f"hours on one {report['device']}"
        )
    return lines


def _said(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None or estimate["low"] is None:
        return "undefined"
    return f"{estimate['value']:.3f} (95 % interval {estimate['low']:.3f} to {estimate['high']:.3f})"


def _churn(
    sample: Sample,
    rows: np.ndarray,
    candidate: np.ndarray,
    promoted: np.ndarray,
    budget: np.ndarray,
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, Any]:
    """Rank correlations and the overlap of the kept shares; intervals over images."""
    new, old, weight = candidate[rows], promoted[rows], sample.weight[rows]
    places = [f"{row['shard']}\n{row['key']}" for row in sample.pairs.select(["shard", "key"]).to_pylist()]
    image = np.array(places, str)[rows]

    def overlap(at: np.ndarray) -> float:
        ours = kept(new[at], weight[at], budget[at], fractions)
        theirs = kept(old[at], weight[at], budget[at], fractions)
        whole = weight[at] @ theirs
        return float(weight[at] @ (ours & theirs) / whole) if whole else math.nan

    def interval(statistic: Any) -> dict[str, Any]:
        return (bootstrap_over(image, statistic, seed=seed) if len(image) else _NOTHING).as_dict()

    return {
        "spearman": interval(lambda at: spearman(new[at], old[at])),
        "kendall_tau_b": interval(lambda at: kendall_tau_b(new[at], old[at])),
        "kept_overlap": interval(overlap),
    }


_NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def _distribution(reward: np.ndarray, keeps: np.ndarray) -> dict[str, Any]:
    """Moments, quantiles and a histogram of kept and dropped rewards."""
    if not len(reward):
        return {"mean": None, "std": None, "quantiles": [], "edges": [], "kept": [], "dropped": [], "cut": None}
    edges = np.histogram_bin_edges(reward, _BINS)
    return {
        "mean": float(reward.mean()),
        "std": float(reward.std()),
        "quantiles": [(share, float(np.quantile(reward, share))) for share in _SHARES],
        "edges": edges.tolist(),
        "kept": np.histogram(reward[keeps], edges)[0].tolist(),
        "dropped": np.histogram(reward[~keeps], edges)[0].tolist(),
        "cut": float(reward[keeps].min()) if keeps.any() else None,
    }


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
