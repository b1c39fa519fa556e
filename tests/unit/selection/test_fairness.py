import polars as pl

from compalign_dagster.selection.fairness import LEAST_EXPECTED, unequal
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.whatif import OTHERS, Outcome


def outcome(*rows: tuple[str, str, int, int]) -> Outcome:
    groups = pl.DataFrame(
        rows, orient="row", schema={"dimension": str, "group": str, "candidates": pl.Int64, "kept": pl.Int64}
    )
    return Outcome(Policy(keep_fraction="0.1"), [], 0, 0, None, 0.0, 0, groups)


def test_a_group_that_is_kept_far_less_than_the_rest_is_told_with_its_figures():
    found = unequal(outcome(("domain", "a.org", 1000, 200), ("domain", "b.org", 1000, 20)), 0.5)
    assert [group.group for group in found] == ["b.org"]
    assert str(found[0]) == "domain b.org: 20 of 1,000 candidates kept (2.0%), 11.0% of all"


def test_the_farthest_group_comes_first_and_dimensions_are_compared_each_on_its_own():
    rows = [("domain", name, 1000, kept) for name, kept in (("a", 400), ("b", 10), ("c", 1))]
    found = unequal(outcome(*rows, ("resolution", "0000-0127", 3000, 411)), 0.5)
    assert [group.group for group in found] == ["c", "b"]


def test_small_groups_and_the_rest_of_the_domains_tell_nothing():
    few = LEAST_EXPECTED * 2 - 1
    rows = [("domain", "a", 10_000, 5_000), ("domain", "few", few, 0), ("domain", OTHERS, 1000, 500)]
    assert unequal(outcome(*rows), 0.5) == []
    assert unequal(outcome(("domain", "a", 10_000, 5_000), ("domain", "many", 500, 0)), 0.5) != []


def test_nothing_kept_is_no_finding():
    assert unequal(outcome(("domain", "a", 10, 0)), 0.5) == []


def test_a_corpus_is_no_group_because_a_policy_may_give_it_a_fraction_of_its_own():
    assert unequal(outcome(("corpus", "a", 1000, 500), ("corpus", "b", 1000, 10)), 0.5) == []
