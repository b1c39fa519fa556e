"""One measurement in a process of its own, so that its peak memory is its own.

    python -m benchmarks.selection.measure NAME FOLDER

Prints one line of JSON: seconds of the work alone, on the clock and of all processors together, MiB with its
libraries loaded and at its peak. Each measurement first does its work on the first batch, so that threads run.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.selection.clock import Clock, peak_mib

if TYPE_CHECKING:
    from compalign_dagster.artifacts import Artifact
    from compalign_dagster.selection.version import Version

KEPT = "0.3"
EXPORTED = ("pair_id", "shard", "key", "caption_index", "corpus", "reward", "image_offset", "image_length")
TRACED = 3  # pairs
WHAT_IF, WHAT_IF_AGAIN = "0.2", "0.1"

Lists = dict[str, "Artifact"]


def scan(folder: Path, keys: list[str]) -> dict[str, Any]:
    """The yardstick: DuckDB reads every reward once."""
    import duckdb

    paths = [str(artifact.fetch("ranked.parquet")) for artifact in _opened(folder, keys).values()]
    clock = Clock()
    with duckdb.connect() as connection:
        found = connection.execute("select count(reward), sum(reward) from read_parquet(?)", [paths]).fetchone()
    assert found is not None
    return {**clock.read(), "pairs": found[0]}


def cut(folder: Path, keys: list[str]) -> dict[str, Any]:
    """The whole decision on lists that are there: manifests, histograms, the rows around the cut, the accounts."""
    clock = Clock()
    version = _decided(folder, keys)
    return {**clock.read(), "kept": version.facts["kept"]}


def export(folder: Path, keys: list[str]) -> dict[str, Any]:
    """The kept pairs with their places as one Parquet file, batch by batch in reading order, without captions."""
    import pyarrow as pa

    from compalign_dagster.selection.exporting import write_table
    from compalign_dagster.selection.tables import RANKED

    schema, out = pa.schema([RANKED.field(name) for name in EXPORTED]), folder / "export.parquet"
    clock = Clock()
    version = _decided(folder, keys)
    rows = write_table(out, schema, (version.kept(batch, EXPORTED) for batch in version.batches()))
    found = {**clock.read(), "rows": rows, "bytes": out.stat().st_size}
    out.unlink()
    return found


def uids(folder: Path, keys: list[str]) -> dict[str, Any]:
    """The kept pairs' identifiers as DataComp's tools read them."""
    from compalign_dagster.selection.exporting import write_ids

    clock, out = Clock(), folder / "kept.npy"
    version = _decided(folder, keys)
    count = write_ids(out, version)
    found = {**clock.read(), "kept": count}
    out.unlink()
    return found


def trace(folder: Path, keys: list[str]) -> dict[str, Any]:
    """Every occurrence of a few pairs with the decision on it, one of them unknown."""
    version = _decided(folder, keys)
    last = version.decided(version.batches()[-1], ["pair_id"])["pair_id"]
    wanted = [last[0], last[-1], "f" * 32][:TRACED]
    clock = Clock()
    found = version.find(wanted)
    return {**clock.read(), "found": found.height}


def what_if(folder: Path, keys: list[str]) -> dict[str, Any]:
    """Another fraction of the lists in hand: all its counts; then yet another, when histograms are loaded."""
    from compalign_dagster.selection.hand import Hand
    from compalign_dagster.selection.whatif import at_fraction, what_if

    version = _decided(folder, keys)
    clock = Clock()
    hand = Hand(version)
    kept = what_if(hand, at_fraction(version.policy, WHAT_IF)).kept
    first, clock = clock.read(), Clock()
    what_if(hand, at_fraction(version.policy, WHAT_IF_AGAIN))
    return {**first, "again": clock.read(), "kept": kept}


NAMES: dict[str, Callable[[Path, list[str]], dict[str, Any]]] = {
    each.__name__: each for each in (scan, cut, export, uids, trace, what_if)
}

_LIBRARIES = {
    "scan": ["duckdb"],
    "ours": [f"compalign_dagster.selection.{name}" for name in ("deciding", "exporting", "uids", "whatif")],
}


def _opened(folder: Path, keys: list[str]) -> Lists:
    """The lists with these manifests, by batch."""
    from compalign_dagster import artifacts
    from compalign_dagster.store import LocalStore

    store = LocalStore(folder / "store")
    found = (artifacts.load(store, key) for key in keys)
    return {artifact.facts["batch"]: artifact for artifact in found if artifact is not None}


def _decided(folder: Path, keys: list[str]) -> "Version":
    from compalign_dagster.selection.deciding import decide_on
    from compalign_dagster.selection.policy import Policy
    from compalign_dagster.store import LocalStore

    return decide_on(LocalStore(folder / "store"), [], Policy(keep_fraction=KEPT), _opened(folder, keys), {})


def main(name: str, folder: Path) -> None:
    """`folder` holds `store` and `keys.json`, the manifests of the lists to measure on."""
    keys = json.loads((folder / "keys.json").read_text())
    for module in _LIBRARIES["scan" if name == "scan" else "ours"]:
        import_module(module)
    before = peak_mib()
    NAMES[name](folder, keys[:1])
    print(json.dumps({**NAMES[name](folder, keys), "imports_mib": before, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
