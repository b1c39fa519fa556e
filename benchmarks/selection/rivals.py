"""What the selection is compared with: a threshold filter as DataComp's baseline is one, written here with numpy.

    python -m benchmarks.selection.rivals FOLDER OUT FRACTION

FOLDER holds Parquet files with columns `uid` (32 hex digits) and `score`. All scores are sorted, the one behind the
wanted share is the threshold, and every pair that is not below it is kept: one more than asked for, and all ties.
The uids are written as DataComp's tools read them: a sorted array of two 64-bit numbers each. Unlike the original,
which turns one uid after the other into numbers, this one does a file at once.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.selection.clock import Clock, peak_mib

UID = np.dtype("u8,u8")


def threshold_filter(folder: Path, out: Path, fraction: float) -> int:
    """Write the uids at or above the threshold to `out`; how many they are."""
    paths = sorted(folder.glob("*.parquet"))
    scores = np.concatenate([pq.read_table(path, columns=["score"])["score"].to_numpy() for path in paths])
    threshold = -np.sort(-scores)[int(len(scores) * fraction)]
    kept = np.concatenate([_uids(path, threshold) for path in paths])
    kept.sort()
    np.save(out, kept)
    return len(kept)


def _uids(path: Path, threshold: float) -> np.ndarray:
    table = pq.read_table(path, columns=["uid", "score"])
    uids = table["uid"].to_numpy(zero_copy_only=False)[table["score"].to_numpy() >= threshold]
    return np.frombuffer(bytes.fromhex("".join(uids)), ">u8").astype("u8").view(UID)


if __name__ == "__main__":
    before, clock = peak_mib(), Clock()
    count = threshold_filter(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
    print(json.dumps({**clock.read(), "kept": count, "imports_mib": before, "peak_mib": peak_mib()}))
