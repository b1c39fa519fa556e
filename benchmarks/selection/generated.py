"""Ranked lists of many pairs, made without images: columns as a crawl of shards of 10,000 pairs has them.

What belongs here: the rows, and publishing them as the selection does. What does not: measuring.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.selection import ranked
from compalign_dagster.selection.tables import GROUPS, HISTOGRAM, IDS, RANKED
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import canonical_json, digest_json

BATCH_PAIRS = 1_000_000
SHARD_PAIRS = 10_000
DISTINCT = 100  # batches; further ones are links to these
CORPORA = ("cc12m", "laion")
_HOSTS = 50_000
_CC12M_SHARE = 0.3


def batch_name(number: int) -> str:
    """The batch of this number, counted from 0."""
    return f"batch-{number + 1:05d}"


def lists(store: LocalStore, pairs: int, *, distinct: int = DISTINCT) -> list[Artifact]:
    """The ranked lists of so many pairs, made where they are not there yet; a million pairs each.

    From the `distinct`-th batch on, lists are hard links to earlier ones under other names.
    """
    made = []
    for number in range(max(1, pairs // BATCH_PAIRS)):
        size = min(pairs, BATCH_PAIRS)
        key = digest_json(["generated", number, size])[:32]
        found = artifacts.find(store, ranked.KIND, key, batch_name(number))
        if found is None and number >= distinct:
            found = _linked(store, made[number % distinct], key, batch_name(number))
        made.append(found or publish(store, number, frame(number, size), key))
    return made


def listed(folder: Path, pairs: int) -> list[Artifact]:
    """The lists of so many pairs in `folder / "store"`; `folder / "keys.json"` says which they are."""
    made = lists(LocalStore(folder / "store"), pairs)
    (folder / "keys.json").write_text(json.dumps([artifact.manifest_key for artifact in made]))
    return made


def frame(number: int, pairs: int) -> pl.DataFrame:
    """RANKED of a batch: rewards of a normal distribution, ids at random, hosts with a long tail."""
    generator = np.random.default_rng([7, number])
    at = np.arange(pairs)
    shard = at // SHARD_PAIRS + number * (BATCH_PAIRS // SHARD_PAIRS)
    corpus = (at >= int(pairs * _CC12M_SHARE)).astype(np.int8)
    length = generator.integers(8_000, 120_000, pairs)
    reward = generator.standard_normal(pairs).astype(np.float32)
    columns = {
        "pair_id": _hex(generator, pairs),
        "shard": _named([f"{CORPORA[corpus[place]]}/{name:07d}.tar" for name, place in _firsts(shard)], shard),
        "key": _digits(shard % 100_000, 5, at % SHARD_PAIRS, 4),
        "caption_index": pa.array(np.zeros(pairs, np.int32)),
        "corpus": _named(CORPORA, corpus),
        "reward": pa.array(reward),
        "reason": pa.nulls(pairs, pa.string()),
        "image_offset": pa.array(at % SHARD_PAIRS * 70_000 + length),
        "image_length": pa.array(length),
        "human_fit": pa.array((1 / (1 + np.exp(-reward - generator.standard_normal(pairs) / 2))).astype(np.float32)),
        "domain": _named([f"host{host}.example.org" for host in range(_HOSTS)], _long_tail(generator, pairs)),
        "caption_characters": pa.array(generator.geometric(1 / 60, pairs).astype(np.int32)),
        "width": pa.array(generator.integers(100, 1500, pairs).astype(np.int32)),
        "height": pa.array(generator.integers(100, 1500, pairs).astype(np.int32)),
    }
    rows = pl.DataFrame(pa.table(columns))
    return rows.sort("corpus", "reward", "pair_id", descending=[False, True, False]).select(RANKED.names)


def publish(store: LocalStore, number: int, rows: pl.DataFrame, key: str) -> Artifact:
    """A list of these rows, with the tables that are counted of it."""
    made = ranked.counted(rows, 0)
    store.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=store.root) as folder:
        tables = {
            "ranked": (made.ranked, RANKED),
            "histogram": (made.histogram, HISTOGRAM),
            "groups": (made.groups, GROUPS),
            "ids": (made.ids, IDS),
        }
        files = {
            f"{name}.parquet": parquet.write(
                ranked.as_table(frame, schema),
                Path(folder, f"{name}.parquet"),
                row_group_rows=ranked.ROW_GROUP_ROWS,
            )
            for name, (frame, schema) in tables.items()
        }
        return artifacts.publish(
            store,
            ranked.KIND,
            key,
            files,
            code_version=ranked.CODE_VERSION,
            inputs=[],
            config={},
            facts={"batch": batch_name(number), **made.facts},
            partition=batch_name(number),
        )


def _linked(store: LocalStore, source: Artifact, key: str, batch: str) -> Artifact:
    path = artifacts.artifact_path(ranked.KIND, key, batch)
    for name in source.names():
        target = store.path(f"{path}/{source.manifest['files'][name]['path']}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(store.path(source.file_key(name)), target)
    facts = {**source.facts, "batch": batch}
    store.put_new(
        f"{path}/manifest.json",
        canonical_json({**source.manifest, "work_key": key, "partition": batch, "facts": facts}),
    )
    found = artifacts.find(store, ranked.KIND, key, batch)
    assert found is not None
    return found


def _firsts(groups: np.ndarray) -> list[tuple[int, int]]:
    values, first = np.unique(groups, return_index=True)
    return list(zip(values.tolist(), first.tolist(), strict=True))


def _named(names: Sequence[str], at: np.ndarray) -> pa.Array:
    """Strings by their number; numbers of shards count from the first."""
    return pa.DictionaryArray.from_arrays(pa.array((at - at.min()).astype(np.int32)), list(names)).cast(pa.string())


def _hex(generator: np.random.Generator, count: int) -> pa.Array:
    """Random ids of 32 hex digits."""
    return _fixed(np.frombuffer(generator.bytes(count * 16).hex().encode(), np.uint8), 32)


def _digits(high: np.ndarray, high_width: int, low: np.ndarray, low_width: int) -> pa.Array:
    """Two numbers as one string of digits."""
    value = high * 10**low_width + low
    places = 10 ** np.arange(high_width + low_width - 1, -1, -1)
    return _fixed((value[:, None] // places % 10 + ord("0")).astype(np.uint8).ravel(), len(places))


def _fixed(characters: np.ndarray, width: int) -> pa.Array:
    count = len(characters) // width
    offsets = np.arange(count + 1, dtype=np.int32) * width
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(characters)))


def _long_tail(generator: np.random.Generator, count: int) -> np.ndarray:
    return np.minimum(generator.pareto(0.6, count), _HOSTS - 1).astype(np.int32)
