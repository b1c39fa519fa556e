"""Hostile captions become visible, inert, bounded text."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.pages.cards import readable


@given(st.text(alphabet=st.characters(codec=None), max_size=600), st.integers(0, 300))
def test_shown_text_has_no_invisible_or_direction_changing_character(text, limit):
    shown = readable(text, limit)
    assert shown.cut == max(0, len(text) - limit)
    assert not [
        character for character in shown.text
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") and character != "\u200d"
    ]  # fmt: skip
    shown.text.encode()


def test_override_is_named_and_emoji_survive():
    assert readable("a\u202eb").text == "a[U+202E]b"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert readable(family).text == family


def test_line_breaks_become_spaces():
    assert readable("two\r\nlines").text == "two  lines"
