"""The curator's pages in a real browser: inert, legible, and the marks follow the cut while the list stands still."""

import pytest

from tests.unit.pages import builders
from tests.unit.pages.test_curating_pages import diff, what_if
from tests.unit.pages.test_in_browser import _CONTRAST, browser

__all__ = ["browser"]
pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", [what_if, diff], ids=lambda page: page.__name__)
def test_page_is_inert_and_legible(browser, tmp_path, page, scheme):
    path = tmp_path / "page.html"
    path.write_bytes(page(builders.HOSTILE[0]))
    context = browser.new_context(color_scheme=scheme, viewport={"width": 420, "height": 900})
    tab = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    assert said == []
    assert [address for address in asked if not address.startswith("data:")] == [path.as_uri()]
    assert tab.evaluate(_CONTRAST) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()


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
