"""What several verbs print: text that cannot steer a terminal, tables, figures."""

from collections.abc import Sequence
from typing import Any


def plain(text: Any) -> str:
    """One line that cannot steer a terminal, whoever wrote it."""
    return aligned(" ".join(str(text).split()))


def aligned(line: str) -> str:
    """As `plain`, with the spaces that align it."""
    return "".join(character if character.isprintable() else "?" for character in line)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows under their headings; the first column to the left, the others to the right."""
    lines = [[plain(cell) for cell in line] for line in [head, *rows]]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in
                  enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )  # fmt: skip


def tabbed(cells: Sequence[Any]) -> str:
    """Cells between tabs, for other programs; nobody's text can add a cell."""
    return "\t".join(aligned(str(cell)) for cell in cells)


def figure(value: float | None, digits: int = 4) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def share(part: float, whole: float) -> str:
    """A part as percent of a whole."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
