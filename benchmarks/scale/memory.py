"""Peak memory of making a batch's ranked list and cutting it, in a process of its own; bytes of tables with real texts.

Random rewards and names as an index and scores have them, shards of 10,000 pairs; captions of 50 characters, or
those of a file.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster import parquet
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.scoring.tables import SCORES
from compalign_dagster.selection import ranked

SHARD_PAIRS = 10_000
BATCH_SHARDS = 100
_PEAK = "VmHWM"  # the highest resident size of a process


def measured(pairs: int) -> dict[str, Any]:
    """Peak MiB and seconds of one selection, measured in a fresh interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder), pairs)
        command = [sys.executable, "-m", "benchmarks.scale.memory", folder]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"pairs": pairs, **json.loads(out.splitlines()[-1])}


def web_bytes(texts: Path) -> dict[str, Any]:
    """Bytes per pair of one shard's index, scores and ranked list, with these URLs and captions."""
    rows = pq.read_table(texts).slice(0, SHARD_PAIRS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts_of: dict[str, list[Any]] = {"caption": rows["TEXT"].to_pylist(), "url": rows["URL"].to_pylist()}
        write_tables(folder, len(rows), texts_of)
        select(folder)
        patterns = {"pair index": "pairs.*", "scores": "scores.*", "ranked lists": f"{ranked.KIND}/**/*.parquet"}
        sizes = {kind: sum(path.stat().st_size for path in folder.glob(pattern)) for kind, pattern in patterns.items()}
    return {"pairs": len(rows), **{kind: round(size / len(rows), 1) for kind, size in sizes.items()}}


def write_tables(folder: Path, pairs: int, texts: Mapping[str, list[Any]] | None = None) -> None:
    """`pairs.<n>.parquet` and `scores.<n>.parquet` of as many shards as that takes; `texts` are columns."""
    generator = np.random.default_rng(5)
    for at in range(-(-pairs // SHARD_PAIRS)):
        size = min(SHARD_PAIRS, pairs - at * SHARD_PAIRS)
        lengths = generator.integers(10_000, 200_000, size)
        columns: dict[str, Any] = {
            "pair_id": [generator.bytes(16).hex() for _ in range(size)],
            "shard": [f"crawl/{at:05d}.tar"] * size,
            "key": [f"{at:05d}{row:06d}" for row in range(size)],
            "caption_index": [0] * size,
            "caption": [generator.bytes(25).hex() for _ in range(size)],
            "corpus": ["crawl"] * size,
            "model_version": ["0" * 64] * size,
            "image_sha256": [generator.bytes(32).hex() for _ in range(size)],
            "image_phash": [generator.bytes(8).hex() for _ in range(size)],
            "image_format": ["JPEG"] * size,
            "image_length": lengths,
            "image_offset": np.cumsum(lengths + 3_000),
            "url": [None] * size,
            **(texts or {}),
        }
        for schema, name in ((PAIRS, "pairs"), (SCORES, "scores")):
            arrays = [_column(field, columns, size, generator) for field in schema]
            parquet.write(pa.Table.from_arrays(arrays, schema=schema), folder / f"{name}.{at:05d}.parquet")


def _column(field: pa.Field, known: dict[str, Any], size: int, generator: np.random.Generator) -> pa.Array:
    if field.name in known:
        return pa.array(known[field.name], field.type)
    return pa.array(generator.standard_normal(size) * 100).cast(field.type, safe=False)


def select(folder: Path) -> dict[str, float]:
    """Decide on these tables and make the ranked lists, as the asset does; peak memory and seconds of it."""
    from decimal import Decimal

    from compalign_dagster.selection.deciding import decide
    from compalign_dagster.selection.policy import Policy
    from compalign_dagster.store import LocalStore

    rows = [_ledger_row(path.name, at) for at, path in enumerate(sorted(folder.glob("scores.*")))]
    started = time.monotonic()
    made = decide(LocalStore(folder), rows, Policy(keep_fraction=Decimal("0.1")))
    assert made.facts["kept"] > 0
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith(_PEAK))
    return {"peak_mib": round(peak / 1024, 1), "seconds": round(time.monotonic() - started, 2)}


def _ledger_row(name: str, at: int) -> dict[str, Any]:
    """What the ledger says of the shard whose scores are called `name`."""
    return {
        "shard": f"crawl/{at:05d}.tar",
        "batch": f"batch-{at // BATCH_SHARDS:05d}",
        "scores_key": name,
        "pairs_key": name.replace("scores", "pairs"),
        "index_version": "0" * 64,
        "data_version": "0" * 64,
        "model_version": "0" * 64,
        "quarantined": 0,
    }


if __name__ == "__main__":
    print(json.dumps(select(Path(sys.argv[1]))))
