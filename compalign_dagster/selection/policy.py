"""The selection policy: how much to keep, of what.

What belongs here: the fractions and what they mean in pairs. What does not: which pairs those are
(`select.py`), and which policy is in force (a decided fact in the store).
"""

import math
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from compalign_dagster.errors import InputError

REST = "*"
"""The budget that corpora without a fraction of their own share."""

_MOST_DECIMALS = 100
_EXACT = Context(prec=2 * _MOST_DECIMALS)


class Policy(BaseModel):
    """Keep fractions. `per_corpus` gives a corpus a budget of its own; all others share `keep_fraction`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1  # of this schema
    keep_fraction: Decimal
    per_corpus: dict[str, Decimal] = {}

    @field_validator("keep_fraction", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Decimal:
        return parse_fraction(value)

    @field_validator("per_corpus", mode="before")
    @classmethod
    def _fractions(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: parse_fraction(value[name], f"keep fraction of {name}") for name in sorted(value)}

    def budget_of(self, corpus: str) -> str:
        """The budget a corpus draws on: its own name, or `REST`."""
        return corpus if corpus in self.per_corpus else REST

    def fraction_of(self, budget: str) -> Decimal:
        """The keep fraction of a budget."""
        return self.per_corpus.get(budget, self.keep_fraction)


def parse_fraction(value: Decimal | str | float, what: str = "keep fraction") -> Decimal:
    """A fraction from 0 to 1, read as a decimal (0.1 is one tenth), in its shortest form.

    Raises `InputError` for anything else, NaN and more than 100 decimals included.
    """
    try:
        fraction = Decimal(str(value).strip())
    except InvalidOperation:
        fraction = Decimal("NaN")
    if not fraction.is_finite() or not 0 <= fraction <= 1:
        raise InputError(
            what,
            expected="a decimal number from 0 to 1",
            found=repr(str(value)),
            remedy="Write 0.3 to keep 30 % of the pairs.",
        )
    if int(fraction.as_tuple().exponent) < -_MOST_DECIMALS:
        raise InputError(
            what,
            expected=f"at most {_MOST_DECIMALS} decimals",
            found=repr(str(value)),
            remedy="Round it; no crawl has that many pairs.",
        )
    return fraction.normalize(_EXACT).copy_abs()


def keep_count(fraction: Decimal | str, n: int) -> int:
    """How many of `n` pairs a fraction keeps: fraction x n, halves rounded up, in exact arithmetic."""
    return math.floor(Fraction(parse_fraction(fraction)) * n + Fraction(1, 2))
