"""Where a table or JSON values are not what they must be, as faults that name the column or field.

What belongs here: comparing. What does not: what is expected.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from compalign_dagster.lineage.manifests import Fault

_LONGEST = 500


def differences(where: str, expected: pl.DataFrame, found: pl.DataFrame) -> Iterator[Fault]:
    """Where a table is not the one that is expected, one fault a column."""
    if expected.schema != found.schema:
        names = sorted({*expected.schema.items()} ^ {*found.schema.items()}, key=str)
        yield Fault(where, ", ".join(dict.fromkeys(name for name, _ in names)) or "columns", "other columns or types")
        return
    if expected.height != found.height:
        yield Fault(where, "rows", f"there are {found.height}, and not {expected.height}")
        return
    for name in expected.columns:
        same = expected[name].eq_missing(found[name])
        if not same.all():
            at = int(same.not_().arg_true()[0])
            more = f", and {int((~same).sum()) - 1} more rows" if int((~same).sum()) > 1 else ""
            yield Fault(where, name, f"row {at} is {found[name][at]!r}, and not {expected[name][at]!r}{more}")


def other_values(where: str, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Fault]:
    """Where JSON values are not the expected ones; numbers may differ by rounding."""
    for name, value in expected.items():
        if not equal(value, found.get(name)) and name != "lists":
            yield Fault(where, f"{what}.{name}", f"is {found.get(name)!r}, and not {value!r}"[:_LONGEST])


def equal(one: Any, other: Any) -> bool:
    """Whether two values are one, numbers but for rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)
