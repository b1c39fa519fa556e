"""The pages of a what-if and of a diff: one inert, bounded file each, whose marks follow the chosen cut."""

import functools
import re
from dataclasses import replace

import pytest

from compalign_dagster.pages.cards import Card
from compalign_dagster.pages.diff import diff_page, diff_view
from compalign_dagster.pages.what_if import Group, Placed, what_if_page, what_if_view
from compalign_dagster.selection.diff import CAUSES
from tests.support.small_version import small_store
from tests.unit.pages import builders
from tests.unit.pages.test_pages import Outline


def group(text: str, count: int, picture: bytes | None = None) -> Group:
    pairs = [
        Placed(
            Card(picture or builders.picture(at), text, 1 - at / 10, text, f"{at:032x}", f"/pair/{at}"),
            (at + 0.5) / 100,
        )
        for at in range(count)
    ]
    return Group(pairs, f"compalign what-if {text}", f"select '{text}'")


def curve(text: str) -> list[dict]:
    rows = []
    for at in range(101):
        groups = [
            {"dimension": dimension, "group": name, "candidates": 50, "kept": at // 2}
            for dimension in ("corpus", "domain", "caption_length", "resolution")
            for name in (text, "other", "", "/Others")[: 4 if dimension == "domain" else 2]
        ]
        budget = {"budget": text, "fraction": str(at / 100), "n": 100, "k": at, "kept": at, "short": at == 100}
        rows.append(
            {"pairs": 100, "kept": at, "mean_reward": 2 - at / 50 if at else None, "budgets": [budget],
             "groups": groups, "expected_fit": 0.9 - at / 300 if at else None, "human_fit": at * 0.8,
             "with_human_fit": at}
        )  # fmt: skip
    return rows


@functools.cache
def what_if(text: str = "plain", count: int = 20, picture: bytes | None = None) -> bytes:
    version = {"name": "abcdef012345", "budget": text, "n": 100, "kept": 30, "policy": {text: text}}
    cards = {name: group(text, count, picture) for name in ("above", "below", "rungs")}
    return what_if_page(version, curve(text), cards)


@functools.cache
def diff(text: str = "plain", count: int = 2, picture: bytes | None = None) -> bytes:
    about = {
        "a": {"name": "aaaa", "kept": 10, "pairs": 100}, "b": {"name": "bbbb", "kept": 12, "pairs": 100},
        "shards": {"new": 1, "removed": 0, "replaced": 0}, "policy": [(text, text, {text: 1}, text)],
        "models": [text, "other"],
    }  # fmt: skip
    side = {
        "pairs": 2 * len(CAUSES),
        "by_cause": dict.fromkeys(CAUSES, 2),
        "by_corpus": {text: 2, "o": 1},
        "mean_reward": 0.5,
    }
    cards = [item.card for item in group(text, count, picture).pairs]
    galleries = {(of, cause): cards for of in ("entered", "left") for cause in CAUSES}
    rewards = {"entered": ([0.0, 1.0, 2.0], [1, 1]), "left": ([0.0, 1.0], [2])}
    return diff_page(about, {"entered": side, "left": side}, rewards, galleries)


PAGES = pytest.mark.parametrize("page", [what_if, diff], ids=lambda page: page.__name__)


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
        if name in ("src", "href", "action", "srcset", "poster")
    ]  # fmt: skip
    assert all(address.startswith(("data:", "#", "/pair/")) for address in addresses if address)
    assert "default-src 'none'" in (outline.all("meta")[1]["content"] or "")
    assert not re.search(rb"url\((?!#)", page())


@PAGES
def test_page_has_what_a_screen_reader_needs(page):
    outline = Outline(page())
    assert len(outline.all("h1")) == 1
    assert all(header.get("scope") for header in outline.all("th"))
    assert all(image.get("alt") for image in outline.all("img"))
    identifiers = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    labelled = {label["for"] for label in outline.all("label")}
    assert {radio["id"] for radio in outline.all("input")} == labelled


def test_pages_of_noisy_pictures_stay_bounded():
    assert len(what_if("noise", 48, builders.noise())) < 5_000_000
    assert len(diff("noise", 100, builders.noise())) < 5_000_000


def test_the_cut_that_is_nearest_to_the_versions_is_chosen_first():
    chosen = [radio["id"] for radio in Outline(what_if()).all("input") if "checked" in radio]
    assert chosen == ["cut6"], "30 % at steps of 5 %"


def test_the_marks_of_each_cut_are_those_of_its_fraction():
    page = what_if().decode()
    for at in range(21):
        kept = min(5 * at, 20)  # a rung at each percent up to 20
        assert f"#cut{at}:checked) .rungs li:nth-child(n+{kept + 1}) .out" in page


def test_the_page_of_a_large_version_offers_the_same_cuts_without_reading_every_row(tmp_path, monkeypatch):
    small = small_store(tmp_path, pairs=12)
    version = small.filter(keep_fraction="0.3")
    whole = Outline(what_if_view(version, small.landing, "name"))
    monkeypatch.setattr("compalign_dagster.pages.what_if._ONE_PASS", 0)
    monkeypatch.setattr("compalign_dagster.pages.what_if.curve", lambda *_: pytest.fail("every row was read"))
    large = Outline(what_if_view(version, small.landing, "name"))
    assert large.all("input") == whole.all("input")
    assert large.text.partition("Groups")[0].replace(" 21 ", " 101 ") == whole.text.partition("Groups")[0]


def test_pages_of_a_real_version_are_made(tmp_path):
    small = small_store(tmp_path, pairs=12)
    first, second = small.filter(keep_fraction="0.3"), small.filter(keep_fraction="0.5", most_per_domain=5)
    page = Outline(what_if_view(second, small.landing, second.artifact.work_key[:12]))
    assert len(page.all("img")) > 20
    changed = Outline(diff_view(first, second, small.landing))
    assert changed.all("img")
    assert "caps" in changed.text
    undecided = replace(second, published=None)
    named = second.artifact.work_key[:12]
    assert diff_view(first, undecided, small.landing, name=named) == diff_view(first, second, small.landing)
    assert what_if_view(undecided, small.landing, named) == what_if_view(second, small.landing, named)
    nothing = small.filter(keep_fraction="0")
    assert Outline(what_if_view(nothing, small.landing, "none")).all("img")
    assert Outline(diff_view(nothing, nothing, small.landing)).all("img") == []
