"""Replaying the quarantine after a fix: which shards are worth reading again, and what that recovered.

A fix is a newer release, a larger budget, or a shard that was delivered again. What belongs here: the
choice and the report. What does not: where indexes are kept (an asset, or a folder of the command line).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from compalign_dagster.crawl.reasons import RETRYABLE, Reason
from compalign_dagster.errors import InputError


def chosen_reasons(names: Iterable[str]) -> frozenset[str]:
    """The reasons to retry: those named, or every one that a fix may take away.

    Raises:
        InputError: for a name that is no reason.
    """
    named = frozenset(names)
    unknown = sorted(named - {reason.value for reason in Reason})
    if unknown:
        raise InputError(
            f"reason {unknown[0]!r}",
            expected="a reason code of the quarantine",
            found="no such one",
            remedy=f"Choose among: {', '.join(sorted(RETRYABLE))}.",
        )
    return named or frozenset(reason.value for reason in RETRYABLE)


def is_chosen(reasons: Collection[str], wanted: Collection[str]) -> bool:
    """Whether a shard with rows of these reasons is read again."""
    return not set(wanted).isdisjoint(reasons)


def recovery(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Per reason, of the shards read again: how many rows went away, and how many there are after it."""
    return {
        reason: {"recovered": max(before.get(reason, 0) - after.get(reason, 0), 0), "remaining": after.get(reason, 0)}
        for reason in sorted({*before, *after})
    }


def recovery_lines(report: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The report as sentences."""
    return [f"{reason}: {row['recovered']:,} recovered, {row['remaining']:,} remain" for reason, row in report.items()]


class ShardRows:
    """A table of a finished index, read shard by shard in bounded memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Look where each shard's rows are. Raises `InputError` when it is no table of this release."""
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unusable(path, "a Parquet table of an index", str(error).splitlines()[0]) from error
        if self._file.schema_arrow.names != schema.names:
            odd = sorted(set(self._file.schema_arrow.names) ^ set(schema.names))
            raise _unusable(path, "the columns of this release", f"others: {', '.join(odd)}")
        self._schema = schema
        self._groups: dict[str, list[int]] = {}
        for at in range(self._file.num_row_groups):
            for name in self._file.read_row_group(at, ["shard"])["shard"].unique().to_pylist():
                self._groups.setdefault(str(name), []).append(at)

    def of(self, shard: str) -> pa.Table:
        """The rows of a shard, in file order."""
        tables = [self._file.read_row_group(at) for at in self._groups.get(shard, [])]
        rows = pa.concat_tables([self._schema.empty_table(), *tables])
        return rows.filter(pc.field("shard") == shard)

    def reasons(self, shard: str) -> Counter[str]:
        """How many rows of a shard have each reason."""
        return Counter(str(reason) for reason in self.of(shard)["reason"].to_pylist())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _unusable(path: Path, expected: str, found: str) -> InputError:
    return InputError(
        f"index table {path}",
        expected=expected,
        found=found,
        remedy="Name a folder that `compalign index` of this release wrote, or index everything again.",
    )


def require_shards(names: Iterable[str], found: Mapping[str, Any]) -> None:
    """Raise `InputError` when a shard that has to be read again was not found."""
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"shard {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            expected="to be among --shards, under the name it has in the index",
            found="no such shard",
            remedy="Give the same --shards as for `compalign index`.",
        )
