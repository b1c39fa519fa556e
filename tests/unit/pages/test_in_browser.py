"""Pages in a real browser: hostile captions do nothing, nothing is requested, text is legible."""

import pytest

from tests.support.required import program
from tests.unit.pages import builders

pytestmark = [pytest.mark.system, pytest.mark.slow]

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-sync",
]
_CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = rgb => rgb.slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !e.closest('svg, .skip'))
    .map(e => {
      const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 120)];
    })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = program("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield instance
        instance.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", builders.PAGES, ids=lambda page: page.__name__)
def test_page_is_inert_and_legible(browser, tmp_path, page, scheme):
    path = tmp_path / "page.html"
    path.write_bytes(page(builders.HOSTILE[0]))
    context = browser.new_context(color_scheme=scheme, viewport={"width": 420, "height": 900})
    tab = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    assert said == []
    assert [address for address in asked if not address.startswith("data:")] == [path.as_uri()]
    assert tab.evaluate(_CONTRAST) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()
