"""Scoring by two models: the cheap one sees every pair, the other one those that it does not turn down.

A part of what is turned down is scored all the same, chosen by the pairs' content alone, so that others can tell
whether it was right (`cascade.audit`). What does not belong here: where the threshold comes from (`cascade.py`),
which cascade is in force (`in_force.py`).
"""

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import ConservationError
from compalign_dagster.reward.model import Progress, no_progress
from compalign_dagster.scoring.cascade import rejects
from compalign_dagster.scoring.engine import Scorer
from compalign_dagster.scoring.in_force import Cascade
from compalign_dagster.scoring.results import ShardScores
from compalign_dagster.scoring.sampling import places_of
from compalign_dagster.scoring.tables import AUDITED, REJECTED

_HASH_DIGITS = 8  # of a pair_id, its last ones: the selection breaks ties by the first

log = logging.getLogger(__name__)


class CascadedScorer:
    """Two models on one device, for any number of shards; otherwise as `Scorer`."""

    def __init__(self, cheap: Scorer, scorer: Scorer, cascade: Cascade) -> None:
        self.config = scorer.config
        self._cheap, self._scorer, self._cascade = cheap, scorer, cascade

    def score_all(
        self, jobs: Iterable[tuple[Shard, pa.Table]], *, progress: Progress = no_progress
    ) -> Generator[ShardScores]:
        """Scores of what was not turned down, for each of the jobs, in their order; raises what `Scorer` does.

        The cheap model reads the next shard while this one is scored; pairs that it lets through are read again. A
        pair that only the cheap model has seen is half done in what `progress` counts.
        """
        handed: deque[tuple[Shard, pa.Table]] = deque()

        def noted() -> Iterator[tuple[Shard, pa.Table]]:
            for shard, pairs in jobs:
                handed.append((shard, pairs))
                yield shard, pairs if shard.corpus in self._cascade.reject_below else pairs.slice(0, 0)

        def half(done: int, _total: int, what: str) -> None:
            progress(done // 2, len(handed[0][1]), what)

        with closing(self._cheap.score_all(noted(), progress=half)) as results:
            for cheap in results:
                shard, pairs = handed[0]
                found = self._score(shard, pairs, cheap, progress)
                handed.popleft()
                yield found

    def _score(self, shard: Shard, pairs: pa.Table, cheap: ShardScores, progress: Progress) -> ShardScores:
        by_place = dict(zip(places_of(cheap.scores), cheap.scores["reward"].to_pylist(), strict=True))
        score = np.array([by_place.get(place, np.nan) for place in places_of(pairs)], np.float32)
        below = rejects(score, self._cascade.reject_below.get(shard.corpus))
        audited = below & drawn(list(map(str, pairs["pair_id"].to_pylist())), self._cascade.audit)
        rejected = below & ~audited
        count = int(rejected.sum())
        found = self._scorer.score(
            shard,
            pairs.filter(pa.array(~rejected)),
            progress=lambda done, total, what: progress((len(pairs) * (total + done)) // (2 * total), len(pairs), what),
        )
        if len(found.scores) + len(found.quarantine) + count != len(pairs):
            raise ConservationError(
                f"cascade over shard {shard.name}",
                expected=f"{len(pairs)} pairs scored, rejected or quarantined",
                found=f"{len(found.scores)} + {count} + {len(found.quarantine)}",
                remedy="This is a fault of the program; please report it.",
            )
        log.info(
            "%s: %d of %d pairs turned down, %d of them audited", shard.name, below.sum(), len(pairs), audited.sum()
        )
        return replace(
            found,
            **_together(cheap, found),
            rejected=_rejected(pairs, score, rejected),
            audited=_audited(pairs, score, audited, found.scores),
        )


def drawn(pair_ids: Sequence[str], share: float) -> np.ndarray:
    """About this share of the pairs, bool [N]: by content alone, so that anybody finds the same ones again."""
    whole = 16**_HASH_DIGITS
    return np.array([int(name[-_HASH_DIGITS:], 16) for name in pair_ids], np.int64) < share * whole


def _together(cheap: ShardScores, found: ShardScores) -> dict[str, Any]:
    """The time of both passes."""
    seconds = cheap.seconds + found.seconds
    stages = {
        name: (cheap.stages[name] * cheap.seconds + found.stages[name] * found.seconds) / seconds if seconds else share
        for name, share in found.stages.items()
    }
    return {"seconds": seconds, "stages": stages, "halved": cheap.halved + found.halved}


def _rejected(pairs: pa.Table, score: np.ndarray, rejected: np.ndarray) -> pa.Table:
    table = pairs.filter(pa.array(rejected))
    columns = {**{name: table[name] for name in REJECTED.names if name != "cheap"}, "cheap": pa.array(score[rejected])}
    return pa.table([columns[name] for name in REJECTED.names], schema=REJECTED)


def _audited(pairs: pa.Table, score: np.ndarray, audited: np.ndarray, scores: pa.Table) -> pa.Table:
    """Those of the audited pairs that have a reward: one that could not be scored is quarantined as elsewhere."""
    cheap = dict(zip(places_of(pairs.filter(pa.array(audited))), score[audited].tolist(), strict=True))
    at = [(row, cheap[place]) for row, place in enumerate(places_of(scores)) if place in cheap]
    table = scores.take(pa.array([row for row, _ in at], pa.int64()))
    columns: dict[str, Any] = {name: table[name] for name in AUDITED.names if name != "cheap"}
    columns["cheap"] = pa.array([value for _, value in at], pa.float32())
    return pa.table([columns[name] for name in AUDITED.names], schema=AUDITED)
