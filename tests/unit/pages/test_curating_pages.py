"""The pages of a what-if and of a diff: bounded, of any version, with marks that follow the chosen cut."""

from dataclasses import replace

import pytest

from compalign_dagster.pages.diff import diff_view
from compalign_dagster.pages.what_if import what_if_view
from tests.support.small_version import small_store
from tests.unit.pages import builders
from tests.unit.pages.builders import diff, what_if
from tests.unit.pages.test_pages import Outline


def test_every_choice_of_a_cut_has_a_label():
    outline = Outline(what_if())
    labelled = {label["for"] for label in outline.all("label")}
    assert {radio["id"] for radio in outline.all("input")} == labelled != set()


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
    assert large.text.partition("Groups")[0] == whole.text.partition("Groups")[0]


def test_pages_of_a_real_version_are_made(tmp_path):
    small = small_store(tmp_path, pairs=12)
    first, second = small.filter(keep_fraction="0.3"), small.filter(keep_fraction="0.5", most_per_domain=5)
    page = Outline(what_if_view(second, small.landing, second.artifact.work_key[:12]))
    assert len(page.all("img")) > 20
    changed = Outline(diff_view(first, second, small.landing))
    assert changed.all("img")
    assert "caps" in changed.text
    undecided = replace(second, published=None, rows=second.shard_keys.to_dicts())
    named = second.artifact.work_key[:12]
    assert diff_view(first, undecided, small.landing, name=named) == diff_view(first, second, small.landing)
    assert what_if_view(undecided, small.landing, named) == what_if_view(second, small.landing, named)
    nothing = small.filter(keep_fraction="0")
    assert Outline(what_if_view(nothing, small.landing, "none")).all("img")
    assert Outline(diff_view(nothing, nothing, small.landing)).all("img") == []
