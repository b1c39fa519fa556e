"""Markdown tables, and text that is no markup in them, whoever wrote it.

What belongs here: what cards and the metadata of events share. What does not: HTML (`pages/`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

_MARKUP = str.maketrans({**{character: f"\\{character}" for character in "\\`*[]|"}, "<": "&lt;"})


def inert(text: Any) -> str:
    """One line that reads as it was written: no link, picture, HTML, code or end of a table's cell."""
    return " ".join(str(text).split()).translate(_MARKUP)


def code(text: Any) -> str:
    """One line as a code span, also within a table; its backticks become apostrophes."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
