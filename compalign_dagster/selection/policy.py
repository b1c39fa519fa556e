"""The selection policy: how much to keep, of what, and which pairs never.

What belongs here: the fractions and rules, validated, and what they mean in pairs. What does not: which
pairs those are (`ranked.py`, `cut.py`), and which policy is in force (a decided fact in the store).
"""

import math
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from compalign_dagster.errors import InputError
from compalign_dagster.scoring.tables import FIGURES
from compalign_dagster.selection.sampling import Sampling

REST = "*"
"""The budget that corpora without one of their own share."""

SCHEMA_VERSION = 3
_WITHOUT_EITHER = 2
_MOST_DECIMALS = 100
_EXACT = Context(prec=2 * _MOST_DECIMALS)
_FLOORS = tuple(name for name in FIGURES if name != "reward")


class Rules(BaseModel):
    """The part of a policy that looks at one pair at a time; ranked lists are made under it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward_floor: float | None = Field(None, allow_inf_nan=False, description="Least reward.")
    floors: dict[str, float] = Field({}, description="Least value of other figures, such as human_fit.")
    languages: tuple[str, ...] = Field((), description="Languages to keep (ISO 639 codes); empty keeps all.")
    unknown_language: Literal["keep", "drop"] = Field(
        "keep", description="What happens to captions without a language."
    )
    caption_patterns: tuple[str, ...] = Field(
        (), description="Regular expressions; a caption that one matches, in any case, is dropped."
    )
    sampling: Sampling | None = Field(
        None,
        exclude_if=lambda value: value is None,  # such a policy has the JSON, and the work keys, of schema 2
        description="Chance to be kept: 0 up to the reward `floor`, 1 from `full` on, linear between; `seed` draws.",
    )

    @field_validator("floors")
    @classmethod
    def _known_figures(cls, value: dict[str, float]) -> dict[str, float]:
        for name, floor in value.items():
            if name not in _FLOORS or not math.isfinite(floor):
                raise InputError(
                    f"policy: floor of {name}",
                    expected=f"a finite number for one of {', '.join(_FLOORS)}; the reward has reward_floor",
                    found=f"{name}: {floor}",
                    remedy="Correct the policy.",
                )
        return dict(sorted(value.items()))

    @field_validator("languages")
    @classmethod
    def _sorted_codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    @field_validator("caption_patterns")
    @classmethod
    def _compilable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        import polars as pl  # here because a bare machine never selects

        for pattern in value:
            try:
                pl.Series([""]).str.contains(f"(?i){pattern}", strict=True)
            except pl.exceptions.PolarsError as error:
                raise InputError(
                    f"policy: caption pattern {pattern!r}",
                    expected="a regular expression without look-around and back-references",
                    found=str(error).splitlines()[0],
                    remedy="Correct the pattern.",
                ) from None
        return value


class Policy(Rules):
    """Keep fractions or counts, rules and caps.

    A corpus in `per_corpus` or `count_per_corpus` has a budget of its own; all others share
    `keep_fraction` or `keep_count`. A fraction is of all pairs of its budget, whatever the rules say of them.
    """

    most_per_semantic_cluster: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda value: value is None,  # as above
        description="Most kept candidates whose images are of one semantic cluster, best first.",
    )
    version: int = Field(  # behind all that it is told by
        SCHEMA_VERSION,
        ge=1,
        le=SCHEMA_VERSION,
        validate_default=True,
        description="The schema that a reader has to know: 3 with sampling or a cap on clusters, else 2.",
    )
    keep_fraction: Decimal | None = Field(None, description="Share of the pairs to keep, a decimal from 0 to 1.")
    keep_count: int | None = Field(None, ge=0, description="How many pairs to keep, in place of a fraction.")
    per_corpus: dict[str, Decimal] = Field({}, description="Keep fractions of corpora with a budget of their own.")
    count_per_corpus: dict[str, int] = Field({}, description="Counts of corpora with a budget of their own.")
    most_per_domain: int | None = Field(None, ge=1, description="Most kept candidates of one domain, best first.")
    most_per_duplicate_group: int | None = Field(
        None, ge=1, description="Most kept candidates that show the same image or nearly the same, best first."
    )

    @field_validator("version")
    @classmethod
    def _least(cls, value: int, info: ValidationInfo) -> int:
        """The oldest schema that says the same, so that equal policies are equal bytes."""
        newer = info.data.get("sampling") or info.data.get("most_per_semantic_cluster")
        return SCHEMA_VERSION if newer else _WITHOUT_EITHER

    @field_validator("keep_fraction", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Decimal | None:
        return None if value is None else parse_fraction(value)

    @field_validator("per_corpus", mode="before")
    @classmethod
    def _fractions(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: parse_fraction(value[name], f"keep fraction of {name}") for name in sorted(value)}

    @field_validator("count_per_corpus")
    @classmethod
    def _counts(cls, value: dict[str, int]) -> dict[str, int]:
        if any(count < 0 for count in value.values()):
            raise ValueError("Input should be counts of at least 0")
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _one_budget_each(self) -> "Policy":
        if REST in self.per_corpus or REST in self.count_per_corpus:
            raise InputError(
                "policy",
                expected="names of corpora with a budget of their own",
                found=f"{REST!r}, the name of the budget that all others share",
                remedy="Give the shared budget's share as keep_fraction or keep_count.",
            )
        twice = sorted(set(self.per_corpus) & set(self.count_per_corpus))
        if (self.keep_fraction is None) == (self.keep_count is None) or twice:
            raise InputError(
                "policy",
                expected="keep_fraction or keep_count, and for each corpus a fraction or a count",
                found=f"both for {', '.join(twice)}" if twice else "both, or neither, for the shared budget",
                remedy="Leave one of them out.",
            )
        return self

    def budget_of(self, corpus: str) -> str:
        """The budget a corpus draws on: its own name, or `REST`."""
        return corpus if corpus in self.per_corpus or corpus in self.count_per_corpus else REST

    def fraction_of(self, budget: str) -> Decimal | None:
        """The keep fraction of a budget; None where it has a count."""
        if budget in self.count_per_corpus:
            return None
        return self.per_corpus.get(budget, self.keep_fraction)

    def count_of(self, budget: str, n: int) -> int:
        """How many of a budget's `n` pairs are to be kept."""
        fraction = self.fraction_of(budget)
        if fraction is not None:
            return keep_count(fraction, n)
        count = self.count_per_corpus.get(budget, self.keep_count)
        assert count is not None, "a budget has a fraction or a count"
        return min(count, n)

    def rules(self) -> Rules:
        """The part that looks at one pair at a time."""
        return Rules(**{name: getattr(self, name) for name in Rules.model_fields})


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
