import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.profiles import PROFILES
from compalign_dagster.settings import Settings, load
from compalign_dagster.settings_page import table_markdown
from tests.conftest import ROOT


def test_a_wrong_value_names_the_variable_the_value_and_the_remedy(monkeypatch):
    monkeypatch.setenv("COMPALIGN_KEEP_FRACTION", "1.5")
    with pytest.raises(InputError) as caught:
        load()
    assert "COMPALIGN_KEEP_FRACTION" in str(caught.value)
    assert "1.5" in str(caught.value)
    assert "unset it" in str(caught.value)


def test_a_misspelt_variable_is_refused_with_a_suggestion(monkeypatch):
    monkeypatch.setenv("COMPALIGN_KEP_FRACTION", "0.2")
    with pytest.raises(InputError, match="Did you mean COMPALIGN_KEEP_FRACTION"):
        load()


def test_the_environment_wins_over_the_profile_and_an_argument_over_both(monkeypatch):
    monkeypatch.setenv("COMPALIGN_KEEP_FRACTION", "0.2")
    assert str(load(profile="paper").keep_fraction) == "0.2"
    assert str(load(profile="paper", keep_fraction="0.4").keep_fraction) == "0.4"


def test_folders_follow_the_home_of_the_profile():
    assert load(profile="photos").store == "var/photos/store"
    assert load(home="elsewhere").landing == "elsewhere/landing"


def test_every_profile_value_has_a_provenance_and_loads():
    for name, profile in PROFILES.items():
        assert all(default.provenance for default in profile.values())
        loaded = load(profile=name)
        for setting, default in profile.items():
            assert getattr(loaded, setting) == default.value


def test_every_setting_is_described():
    assert all(field.description for field in Settings.model_fields.values())


def test_the_documented_table_is_the_one_the_code_makes():
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page.endswith(table_markdown()), "run: python -m compalign_dagster.settings_page > docs/settings.md"


def test_a_value_that_is_no_json_is_explained(monkeypatch):
    monkeypatch.setenv("COMPALIGN_KEEP_PER_CORPUS", "cc12m=0.3")
    with pytest.raises(InputError, match="JSON"):
        load()


def test_a_variable_in_small_letters_is_refused(monkeypatch):
    monkeypatch.setenv("compalign_profile", "paper")
    with pytest.raises(InputError, match="COMPALIGN_PROFILE"):
        load()


@pytest.mark.parametrize("name", ["store", "labels", "evaluation"])
@pytest.mark.parametrize(
    ("landing", "other"),
    [("s3://b", "s3://b/x"), ("s3://b/l/", "s3://b/l"), ("here", "here/x"), ("here/", "./here/x/")],
)
def test_a_place_in_the_landing_place_is_refused_because_it_would_be_crawled(name, landing, other):
    with pytest.raises(InputError, match=f"COMPALIGN_{name.upper()}.*inside it.*COMPALIGN_LANDING"):
        load(landing=landing, **{name: other})


def test_places_beside_each_other_whose_names_begin_alike_are_not_in_each_other():
    load(landing="s3://b/a", store="s3://b/ab", labels="s3://b/a-labels", evaluation="s3://b")


@pytest.mark.parametrize("name", ["store", "landing", "labels", "evaluation"])
def test_credentials_in_a_url_are_refused_before_anything_shows_the_url(name):
    with pytest.raises(InputError, match=f"COMPALIGN_{name.upper()}.*AWS_ACCESS_KEY_ID") as caught:
        load(**{name: "s3://AKIA:hush@bucket/x"})
    assert "hush" not in str(caught.value)
    load(**{name: "s3://bucket/of@somebody"})
