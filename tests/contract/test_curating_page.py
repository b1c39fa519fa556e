"""docs/curating.md names every field of a policy, every reason in its order, and every cause of a diff."""

from compalign_dagster.selection import reasons
from compalign_dagster.selection.causes import CAUSES
from compalign_dagster.selection.policy import Policy
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "curating.md").read_text()


def test_every_field_of_a_policy_is_in_the_reference():
    table = TEXT.partition("| field | meaning |")[2].partition("**Order of application.**")[0]
    assert [name for name in Policy.model_fields if f"`{name}`" not in table] == []


def test_the_reasons_stand_in_the_order_in_which_they_apply():
    order = TEXT.partition("**Order of application.**")[2].partition("\n\nExactly")[0]
    places = [order.index(f"`{name}`") for name in reasons.ORDER if name not in reasons.OF_CUT]
    assert places == sorted(places)
    assert all(f"`{name}`" in order for name in reasons.OF_CUT)


def test_every_cause_is_explained():
    table = TEXT.partition("| cause | meaning |")[2].partition("\n\n")[0]
    assert [name for name in CAUSES if f"`{name}`" not in table] == []
