"""Text of others in a table stays text."""

import pytest
from markdown_it import MarkdownIt

from compalign_dagster.markdown import code, inert, table

HOSTILE = [
    "![x](http://evil/track.png)",
    "[here](http://evil)",
    "<img src=x onerror=y>",
    "`code` and *emphasis*",
    "a | b",
    "a \\| b",
    "a \\\\| b `",
    "one\n\n# two\n\n| three |",
    "\\[x](http://evil)",
]


def shown(cell: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(table(("a", "b"), [(cell, "last")]))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_as_written_in_its_own_cell(text):
    html = shown(inert(text))
    assert html.count("<td>") == 2
    assert "<td>last</td>" in html
    assert not any(tag in html for tag in ("<img", "<a ", "<em", "<code", "<h1"))
    written = " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{written}</td>" in html


@pytest.mark.parametrize("text", HOSTILE)
def test_code_stays_one_span_in_one_cell(text):
    html = shown(code(text))
    assert html.count("<td>") == 2
    assert html.count("<code>") == 1
    assert not any(tag in html for tag in ("<img", "<a ", "<em"))


def test_the_planted_bug_of_escaping_pipes_alone_lets_pictures_through():
    assert "<img" in shown(HOSTILE[0].replace("|", "\\|"))
