"""Soft sampling: a chance to be kept that rises with the reward, and the number that decides for a pair.

What belongs here: the chance and the number. What does not: when the rule applies (`ranked.py`), how many of the
sampled pairs are kept (`cut.py`).
"""

import hashlib

from pydantic import BaseModel, ConfigDict, Field, model_validator

_BITS = 53  # that a float64 holds exactly


class Sampling(BaseModel):
    """The chance is 0 up to `floor`, 1 from `full` on, and between them rises with the reward in a straight line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor: float = Field(allow_inf_nan=False)
    full: float = Field(allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _rising(self) -> "Sampling":
        if not 0 < self.full - self.floor < float("inf"):
            raise ValueError("Input should be a floor below full, and not the whole range of numbers below it")
        return self

    def number(self, pair_id: str) -> float:
        """The pair's number, from 0 to before 1: of equal ids and seeds the same one everywhere and for ever.

        It is the first 53 bits of SHA-256 over `SEED:PAIR_ID` (UTF-8), as a fraction.
        """
        digest = hashlib.sha256(f"{self.seed}:{pair_id}".encode()).digest()
        return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) * 2.0**-_BITS
