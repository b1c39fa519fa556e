"""The tables of a scored shard: scores, and the quarantine of pairs that have none.

What does not belong here: how figures are made (`forward.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster.crawl.tables import QUARANTINE
from compalign_dagster.errors import ConservationError
from compalign_dagster.parquet import from_rows
from compalign_dagster.scoring.tables import FIGURES, SCORES


@dataclass(frozen=True)
class ShardScores:
    """Scores (SCORES), quarantine (crawl QUARANTINE) and what a cascade rejected; together every pair that went in."""

    scores: pa.Table
    quarantine: pa.Table
    seconds: float  # of waiting for images, of the model and of the tables
    over_long: int  # captions of which the model read only the beginning; scored, and counted here
    stages: Mapping[str, float]  # share of the seconds in which read, decode, forward, write was waited for; sum 1
    batch_images: int  # images encoded at once, at most, at the end
    halved: int  # times that memory ran out
    device: str  # as torch names it, such as "NVIDIA H100 80GB HBM3" or "cpu"
    rejected: pa.Table | None = None  # REJECTED; None where no cascade was used
    audited: pa.Table | None = None  # AUDITED: what it would have rejected too, and is among the scores


def tables(
    pairs: pa.Table, found: np.ndarray, computed: int, refused: dict[int, tuple[str, str]], model_version: str
) -> tuple[pa.Table, pa.Table]:
    """SCORES and QUARANTINE of `pairs`, from their FIGURES [N, F] and the reasons of those that have none, by row.

    `computed` pairs went through the model. One whose reward is not finite is quarantined too. `ConservationError` if
    a pair were lost, which must not look like a reward that is not finite.
    """
    if computed + len(refused) != len(pairs):
        raise ConservationError(
            f"scoring of shard {pairs['shard'][0]}",
            expected=f"{len(pairs)} pairs computed or refused",
            found=f"{computed} + {len(refused)}",
            remedy="This is a fault of the program; please report it.",
        )
    for row in np.flatnonzero(~np.isfinite(found[:, 0])).tolist():
        refused.setdefault(row, ("reward_not_finite", f"reward {found[row, 0]}"))
    return _scores(pairs, found, refused, model_version), _quarantine(pairs, refused)


def _scores(pairs: pa.Table, found: np.ndarray, refused: dict[int, tuple[str, str]], model_version: str) -> pa.Table:
    kept = np.array([row for row in range(len(pairs)) if row not in refused], np.int64)
    table = pairs.take(kept)
    figures: dict[str, pa.Array] = {
        name: pa.array(values, pa.float32(), mask=~np.isfinite(values))
        for name, values in zip(FIGURES, found[kept].T, strict=True)
    }
    figures["model_version"] = pa.array([model_version] * len(kept), pa.string())
    for name in SCORES.names:
        if name not in figures:
            figures[name] = table[name].combine_chunks()
    return pa.Table.from_arrays([figures[name] for name in SCORES.names], schema=SCORES)


def _quarantine(pairs: pa.Table, refused: dict[int, tuple[str, str]]) -> pa.Table:
    rows = []
    names = ["shard", "key", "caption_index", "image_offset"]
    for row in sorted(refused):
        place = {name: pairs[name][row].as_py() for name in names}
        reason, detail = refused[row]
        rows.append(
            {
                "shard": place["shard"],
                "key": place["key"],
                "unit": "caption",
                "caption_index": place["caption_index"],
                "offset": place["image_offset"],
                "reason": reason,
                "detail": detail,
            }
        )
    return from_rows(rows, QUARANTINE)


def total(scores: list[ShardScores]) -> dict[str, int | float]:
    """Facts of many shards together: scored, quarantined and over-long pairs, and seconds."""
    return {
        "scored": sum(len(item.scores) for item in scores),
        "quarantined": sum(len(item.quarantine) for item in scores),
        "over_long": sum(item.over_long for item in scores),
        "seconds": sum(item.seconds for item in scores),
    }


def summary(scores: pa.Table) -> dict[str, float | int | None]:
    """Count, mean, standard deviation, least and greatest reward of a table of scores."""
    reward = scores["reward"]
    return {
        "pairs": len(scores),
        "mean": pc.mean(reward).as_py(),
        "std": pc.stddev(reward).as_py(),
        "least": pc.min(reward).as_py(),
        "greatest": pc.max(reward).as_py(),
    }
