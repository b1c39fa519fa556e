"""A sample of a crawl's pairs that stands for all of them, by corpus and by what the promoted model thinks.

What belongs here: which pairs are drawn, and how many each stands for. What does not: scoring them
(`shadow.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster import parquet
from compalign_dagster.crawl.tables import PAIRS

_DECILES = 10


@dataclass(frozen=True)
class Source:
    """One indexed shard: its pairs (PAIRS) and, where the promoted model has scored it, their scores (SCORES)."""

    shard: str
    pairs: Path
    scores: Path | None = None


@dataclass(frozen=True)
class Sample:
    """Rows of PAIRS in shard order; `weight` is how many pairs of the crawl each stands for."""

    pairs: pa.Table
    weight: np.ndarray  # float64 [N]
    decile: np.ndarray  # int64 [N], -1 without a promoted model's scores
    promoted: np.ndarray  # float64 [N], NaN likewise
    population: int  # pairs it was drawn from
    strata: int


def draw_sample(sources: Sequence[Source], size: int, *, seed: int) -> Sample:
    """About `size` pairs of the crawl, each stratum by its share; at least one of each while that fits.

    A stratum is a corpus and a tenth of it by the promoted model's rewards. As they are drawn in proportion,
    ranks in the sample stand for ranks in the crawl. Where some shards have scores, the others are left
    out. Deterministic in the sources and the seed. In memory are the rewards of the whole crawl, 24 bytes a
    pair with their strata, and one shard's table at a time.
    """
    scored = [source for source in sources if source.scores is not None]
    used = sorted(scored or sources, key=lambda source: source.shard)
    reward, corpus, sizes = _population(used)
    decile = _deciles(reward, corpus)
    _, stratum = np.unique(np.stack([corpus, decile]), axis=1, return_inverse=True)
    rows = _proportional(stratum, size, seed)
    counts, drawn = np.bincount(stratum), np.bincount(stratum[rows], minlength=int(stratum.max(initial=-1)) + 1)
    weight = counts[stratum[rows]] / np.maximum(drawn[stratum[rows]], 1)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    tables = [
        _rows_of(source, rows[(rows >= first) & (rows < last)] - first)
        for source, first, last in zip(used, starts[:-1], starts[1:], strict=True)
    ]
    found = [table for table in tables if len(table)]
    pairs = pa.concat_tables(found) if found else PAIRS.empty_table()
    return Sample(pairs, weight.astype(np.float64), decile[rows], reward[rows], len(stratum), len(counts))


def together(samples: Sequence[Sample]) -> Sample:
    """Samples of different shards as one, in their order."""
    return Sample(
        pa.concat_tables([sample.pairs for sample in samples]),
        np.concatenate([sample.weight for sample in samples]),
        np.concatenate([sample.decile for sample in samples]),
        np.concatenate([sample.promoted for sample in samples]),
        sum(sample.population for sample in samples),
        sum(sample.strata for sample in samples),
    )


def _population(sources: Sequence[Source]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Promoted rewards (NaN without) and corpus codes of every pair, and the rows of each source."""
    rewards, names, sizes = [], [], []
    for source in sources:
        if source.scores is not None:
            rewards.append(parquet.read(source.scores, ["reward"])["reward"].to_numpy().astype(np.float64))
        else:
            rewards.append(np.full(pq.read_metadata(source.pairs).num_rows, np.nan))
        sizes.append(len(rewards[-1]))
        first = pq.ParquetFile(source.pairs).iter_batches(1, columns=["corpus"]) if sizes[-1] else iter(())
        names.append(next((str(batch["corpus"][0]) for batch in first), ""))
    known = {name: code for code, name in enumerate(sorted(set(names)))}
    corpus = np.repeat(np.array([known[name] for name in names], np.int64), sizes)
    return np.concatenate([*rewards, np.zeros(0)]), corpus, sizes


def _deciles(reward: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """Tenths of each corpus by rank of the reward, int64 [N], 0 the lowest; -1 where there is no reward."""
    found = np.full(len(reward), -1, np.int64)
    for code in np.unique(corpus):
        rows = np.flatnonzero((corpus == code) & np.isfinite(reward))
        rank = np.empty(len(rows), np.int64)
        rank[np.argsort(reward[rows], kind="stable")] = np.arange(len(rows))
        found[rows] = rank * _DECILES // max(len(rows), 1)
    return found


def _proportional(stratum: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Sorted rows: of each stratum its share of `size`, by largest remainders, at least one where that fits."""
    counts = np.bincount(stratum)
    size = min(size, len(stratum))
    share = counts * (size / max(len(stratum), 1))
    take = np.floor(share).astype(np.int64)
    if size >= len(counts):
        take = np.maximum(take, np.minimum(counts, 1))
    spare = size - int(take.sum())
    order = np.argsort(take - share, kind="stable")  # largest remainder first
    for at in order[:spare] if spare > 0 else []:
        take[at] += 1
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(stratum == at))[:number]
        for at, number in enumerate(np.minimum(take, counts))
    ]
    return np.sort(np.concatenate([*chosen, np.zeros(0, np.int64)]))


def _rows_of(source: Source, rows: np.ndarray) -> pa.Table:
    """These rows of a shard's scores, or of its pairs where it has none, as rows of PAIRS."""
    if not len(rows):
        return PAIRS.empty_table()
    pairs = parquet.read(source.pairs)
    if source.scores is None:
        return pairs.take(pa.array(rows))
    places = places_of(parquet.read(source.scores, ["key", "caption_index"]).take(pa.array(rows)))
    known = {place: at for at, place in enumerate(places_of(pairs))}
    return pairs.take(pa.array([known[place] for place in places]))


def places_of(table: pa.Table) -> list[tuple[str, int]]:
    """Key and caption index of each row: what names a pair within its shard."""
    return [(row["key"], row["caption_index"]) for row in table.select(["key", "caption_index"]).to_pylist()]
