"""The what-if page in a real browser: the marks follow the cut while the list stands still."""

import pytest

from tests.unit.pages.builders import what_if
from tests.unit.pages.test_in_browser import browser

__all__ = ["browser"]
pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_the_list_stands_still_while_the_keyboard_moves_the_cut(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(what_if())
    tab = browser.new_page()
    tab.goto(path.as_uri())
    order = tab.locator(".rungs li").evaluate_all("all => all.map(li => li.dataset.pair)")
    assert len(order) == 20
    tab.locator("#cut6").focus()
    for percent in (25, 20, 15, 10, 5, 0):
        tab.keyboard.press("ArrowLeft")
        assert tab.locator(".told p:visible").inner_text().startswith(f"{percent} %:")
        kept = [at for at in range(20) if tab.locator(".rungs li").nth(at).locator(".in").is_visible()]
        assert kept == list(range(min(percent, 20)))
        assert tab.locator(".rungs .out:visible").count() == 20 - len(kept)
        assert tab.locator(".rungs li").evaluate_all("all => all.map(li => li.dataset.pair)") == order
    tab.close()
