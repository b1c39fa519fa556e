from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.errors import InputError
from compalign_dagster.selection.policy import Policy, keep_count, parse_fraction


@pytest.mark.parametrize(
    ("fraction", "n", "k"),
    [
        ("0.5", 1, 1),
        ("0.5", 5, 3),
        ("0.1", 5, 1),
        ("0.1", 4, 0),
        ("0.3", 4000, 1200),
        ("0", 9, 0),
        ("1", 9, 9),
    ],
)
def test_halves_are_rounded_up(fraction, n, k):
    assert keep_count(fraction, n) == k


@given(st.decimals(0, 1, places=6), st.integers(0, 10**9))
def test_the_count_is_the_decimal_product_rounded_half_up(fraction, n):
    assert keep_count(fraction, n) == int((fraction * n).quantize(Decimal(1), ROUND_HALF_UP))


@given(st.integers(0, 1000), st.integers(0, 10**6))
def test_a_larger_fraction_keeps_at_least_as_many(thousandth, n):
    assert keep_count(Decimal(thousandth) / 1001, n) <= keep_count(Decimal(thousandth + 1) / 1001, n) <= n


@pytest.mark.parametrize("value", ["1.5", "-0.1", "nan", "inf", "", "a third", "1e-99999999", "30%"])
def test_what_is_no_fraction_is_refused_with_its_text(value):
    with pytest.raises(InputError) as caught:
        parse_fraction(value)
    assert repr(value) in str(caught.value)


def test_a_float_means_its_shortest_decimal():
    assert Policy(keep_fraction=0.1).keep_fraction == Decimal("0.1")


def test_the_corpus_with_a_wrong_fraction_is_named():
    with pytest.raises(InputError, match="cc12m"):
        Policy(keep_fraction="0.3", per_corpus={"cc12m": "1.5"})


def test_equal_policies_are_equal_json():
    one = Policy(keep_fraction="0.30", per_corpus={"b": "1.0", "a": "0.100"})
    other = Policy(keep_fraction=0.3, per_corpus={"a": 0.1, "b": 1})
    assert one.model_dump_json() == other.model_dump_json()
    assert Policy.model_validate_json(one.model_dump_json()) == one


def test_a_corpus_without_a_fraction_draws_on_the_shared_budget():
    policy = Policy(keep_fraction="0.3", per_corpus={"cc3m": "0.1"})
    assert [policy.fraction_of(policy.budget_of(name)) for name in ("cc3m", "laion")] == [
        Decimal("0.1"),
        Decimal("0.3"),
    ]


@pytest.mark.parametrize("own", [{"per_corpus": {"*": "0.5"}}, {"count_per_corpus": {"*": 5}}])
def test_the_shared_budget_is_no_corpus(own):
    with pytest.raises(InputError, match="share"):
        Policy(keep_fraction="0.3", **own)
