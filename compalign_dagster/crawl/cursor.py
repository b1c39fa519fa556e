"""What a tick of the arrival sensor tells the next: a small text of one version.

All of it is a hint. A tick without it looks at more than it would have had to, and registers nothing twice.
"""

import logging
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

_MOST_CHARACTERS = 100_000
_WITHOUT_KEYS: dict[str, Any] = {"positions": {}, "waiting": {}, "lost": []}  # the sweep finds all of it again

log = logging.getLogger(__name__)


class Cursor(BaseModel):
    """Times are seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    version: Literal[1] = 1
    positions: dict[str, str] = {}  # top-level folder ("" for keys beside them) -> last key handled
    waiting: dict[str, float] = {}  # incomplete shard -> when first seen
    swept_to: str | None = None  # last key that the sweep handled, None between sweeps
    swept: float = 0.0  # when the last sweep began
    since: float | None = None  # when the oldest shard of a batch that is not full was seen
    lost: list[str] = []  # corpora without a single shard left
    failures: int = 0  # consecutive ticks without access
    saved: float = 0.0

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """The cursor that a text holds; a fresh one for text of another version, or junk."""
        try:
            return cls.model_validate_json(text) if text else cls()
        except ValidationError as error:
            log.warning("the cursor is not one of version 1 (%s): starting afresh", error.errors()[0]["msg"])
            return cls()

    def dump(self) -> str:
        """Text of bounded length."""
        text = self.model_dump_json()
        return text if len(text) <= _MOST_CHARACTERS else self.model_copy(update=_WITHOUT_KEYS).model_dump_json()
