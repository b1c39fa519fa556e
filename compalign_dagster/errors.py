"""The errors a user is meant to read.

Every error of this project that a person can mend says four things: which object, what was
expected, what was found and what to do. Programming mistakes stay ordinary Python errors.
"""

from functools import partial
from typing import Any


class CompalignError(Exception):
    """Something a user can understand and mend; its text is one line."""

    def __init__(self, what: str, *, expected: str, found: str, remedy: str) -> None:
        self.what, self.expected, self.found, self.remedy = what, expected, found, remedy
        super().__init__(f"{what}: expected {expected}, found {found}. {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """How a worker process hands it to the process that it works for."""
        return partial(type(self), expected=self.expected, found=self.found, remedy=self.remedy), (self.what,)


class InputError(CompalignError):
    """Input that cannot be used at all. The command line ends with exit code 2."""


class ConservationError(CompalignError):
    """A stage lost or invented something: rows in are not kept + dropped + quarantined."""


class PromotionRefusedError(CompalignError):
    """A reward model that did not pass the promotion gate."""
