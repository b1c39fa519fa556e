"""Every page is one inert, bounded, self-contained file, whatever the captions say."""

import re
from html.parser import HTMLParser

import pytest

from compalign_dagster.pages.filtered import Section, Shown, filtered_page, steps_of
from tests.unit.pages import builders

NOTHING = {"edges": [], "kept": [], "dropped": []}
PAGES = pytest.mark.parametrize("page", builders.PAGES, ids=lambda page: page.__name__)
_VOID = {"meta", "link", "img", "br", "hr", "input", "use", "path", "rect"}


class Outline(HTMLParser):
    """What a browser would make of a page: elements, identifiers, text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@PAGES
@pytest.mark.parametrize("text", builders.HOSTILE, ids=range(len(builders.HOSTILE)))
def test_hostile_text_stays_text(page, text):
    outline = Outline(page(text))
    assert outline.open == []
    assert not outline.all("script")
    assert not [name for _, attributes in outline.elements for name in attributes if name.startswith("on")]
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in outline.all("img"))
    assert "49{%" not in outline.text


@PAGES
def test_page_asks_for_nothing_outside_itself(page):
    outline = Outline(page())
    addresses = [
        value for _, attributes in outline.elements for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "poster")
    ]  # fmt: skip
    assert all(
        address.startswith(("data:", "#", "/a/page.html", "/browse/a", "/pair/")) for address in addresses if address
    )
    policy = outline.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert "default-src 'none'" in (policy["content"] or "")
    assert not re.search(rb"url\((?!#)", page())


@PAGES
def test_page_has_what_a_screen_reader_needs(page):
    outline = Outline(page())
    assert outline.all("html")[0]["lang"] == "en"
    assert len(outline.all("h1")) == 1
    assert all(header.get("scope") for header in outline.all("th"))
    assert all(image.get("alt") for image in outline.all("img"))
    identifiers = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    plots = [element for element in outline.all("div") if element.get("class") == "plot"]
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)


@PAGES
def test_same_facts_give_the_same_bytes(page):
    assert page() == page.__wrapped__()


@PAGES
def test_plots_follow_the_colour_scheme(page):
    html = page().decode()
    if "<svg" in html:
        assert "currentColor" in html
        assert "#0a0b0c" not in html
        assert "<dc:date>" not in html


def section(cards, views=1) -> Section:
    return Section("kept", len(cards), [Shown("shown", cards, "command", "sql")] * views)


def test_long_gallery_is_cut_and_says_so():
    facts = {"pairs": 60, "kept": 60, "dropped_by_reason": {}}
    page = filtered_page(facts, NOTHING, [section(builders.cards(["x" * 10_000], count=60))])
    outline = Outline(page)
    assert len(outline.all("img")) == 24
    assert "36 more are not shown" in outline.text
    assert "9\u202f820 more characters" in outline.text
    assert len(page) < 600_000


def test_page_of_noisy_pictures_in_every_group_stays_bounded():
    noisy = [builders.Card(builders.noise(), "noise")] * 8
    facts = {"pairs": 24, "kept": 24, "dropped_by_reason": {}}
    page = filtered_page(facts, NOTHING, [section(noisy, views=3)] * 14)
    assert len(page) < 8_000_000


def test_the_waterfall_follows_the_order_of_reasons_and_adds_up():
    facts = {"pairs": 10, "kept": 3, "quarantined": 1, "dropped_by_reason": {"below_cut": 4, "takedown": 2}}
    assert steps_of(facts) == [("pairs", 10), ("quarantined", 1), ("takedown", 2), ("below_cut", 4)]
    assert "on the block list" in Outline(filtered_page(facts, NOTHING, [])).text


def test_waterfall_that_does_not_add_up_is_refused():
    facts = {"pairs": 10, "kept": 3, "dropped_by_reason": {"below_cut": 6}}
    with pytest.raises(ValueError, match="does not end at 3"):
        filtered_page(facts, NOTHING, [])


def test_undecodable_picture_is_named_and_costs_nothing_else():
    facts = {"pairs": 2, "kept": 2, "dropped_by_reason": {}}
    pair = [builders.Card(b"not an image", "first"), builders.Card(builders.picture(), "second")]
    outline = Outline(filtered_page(facts, NOTHING, [section(pair)]))
    assert "no picture" in outline.text
    assert "second" in outline.text
    assert len(outline.all("img")) == 1


def test_quarantine_reason_and_object_are_on_the_crawl_page():
    text = Outline(builders.crawl("sample/00042.tar")).text
    assert "image truncated" in text
    assert "sample/00042.tar" in text


def test_sample_data_are_called_a_sample():
    assert "a sample, not evidence about the web" in Outline(builders.evaluation()).text
