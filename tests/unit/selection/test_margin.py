"""The pairs around a cut are the right ones, their fractions are exact, and the SQL gives the same."""

from decimal import Decimal

import duckdb
import polars as pl
import pytest

from compalign_dagster import parquet
from compalign_dagster.selection import deciding
from compalign_dagster.selection.hand import Hand
from compalign_dagster.selection.margin import margin, pairs, ranks_sql, rungs
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.select import TIE_BREAK, ranked_by
from compalign_dagster.selection.sql import create_views
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.whatif import of_budget
from tests.support.small_version import SmallStore, small_store

POLICIES = {
    "global": Policy(keep_fraction="0.3"),
    "per corpus": Policy(keep_fraction="0.3", per_corpus={"shop": "0.1"}),
    "floor and cap": Policy(keep_fraction="0.3", reward_floor=-1.0, most_per_domain=9),
    "nothing": Policy(keep_fraction="0"),
    "everything": Policy(keep_fraction="1"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SmallStore:
    return small_store(tmp_path_factory.mktemp("small"), pairs=30)


@pytest.fixture(params=POLICIES)
def version(request, small) -> Version:
    return small.filter(POLICIES[request.param], move=False)


def candidates(version: Version, budget: str) -> pl.DataFrame:
    """A budget's pairs that neither a rule nor a cap takes away, best first."""
    every = pl.concat([version.decided(batch) for batch in version.batches()])
    cut = pl.col("reason").is_null() | pl.col("reason").is_in(["below_cut", "tied_at_cut", "no_budget"])
    corpora = version.lists.filter(budget=budget)["corpus"].to_list()
    return ranked_by(every.filter(cut, pl.col("corpus").is_in(corpora)), "reward")


def test_the_margin_is_the_last_kept_and_the_first_dropped_pairs(version):
    found = margin(Hand(version), version.policy, 10)
    whole = candidates(version, found.budget)
    kept = whole.filter(pl.col("reason").is_null())
    assert found.kept == kept.height
    assert found.above.select(TIE_BREAK).rows() == kept.tail(10).select(TIE_BREAK).rows()
    assert found.below.select(TIE_BREAK).rows() == whole.slice(kept.height, 10).select(TIE_BREAK).rows()
    assert found.above["rank"].to_list() == list(range(max(0, kept.height - 10), kept.height))


def test_a_pair_is_kept_from_its_fraction_on_and_not_just_below_it(small, version):
    found, rows = (
        margin(Hand(version), version.policy, 3),
        parquet.read(small.ledger.fetch("ledger.parquet")).to_pylist(),
    )
    for row in pl.concat([found.above, found.below]).iter_rows(named=True):
        exact = Decimal(2 * row["rank"] + 1) / (2 * found.n)
        assert row["kept_from"] == pytest.approx(float(exact))
        for fraction, kept in ((exact + Decimal("1e-9"), True), (exact - Decimal("1e-9"), False)):
            other = deciding.decide(small.store, rows, of_budget(version.policy, found.budget, fraction))
            known = other.find([row["pair_id"]]).filter(shard=row["shard"], key=row["key"])
            assert known.filter(caption_index=row["caption_index"])["reason"].is_null().to_list() == [kept]


def test_rungs_are_the_pairs_at_the_cut_of_each_fifth_percent(version):
    hand = Hand(version)
    budget = margin(hand, version.policy).budget
    whole, found = candidates(version, budget), rungs(hand, version.policy, budget)
    ranks = found["rank"].to_list()
    assert ranks == sorted(set(ranks))
    assert found.select(TIE_BREAK).rows() == [whole.select(TIE_BREAK).row(rank) for rank in ranks]
    n = version.lists.filter(budget=budget)["rows"].sum()
    asked = {min(int(Decimal(at) / 100 * n + Decimal("0.5")), whole.height) - 1 for at in range(5, 101, 5)}
    assert set(ranks) == {rank for rank in asked if rank >= 0}


def test_the_sql_gives_the_same_pairs(version):
    hand = Hand(version)
    found = margin(hand, version.policy)
    with duckdb.connect() as connection:
        create_views(connection, version)
        for side in ("above", "below"):
            assert connection.execute(found.sql(side)).fetchall() == getattr(found, side).select(TIE_BREAK).rows()
        steps = pairs(hand, version.policy, "rungs")
        sql = ranks_sql(found.budget, steps["rank"].to_list())
        assert connection.execute(sql).fetchall() == steps.select(TIE_BREAK).rows()


def test_a_corpus_with_a_hostile_name_stays_a_name():
    sql = ranks_sql("x' or '1'='1", [1])
    assert "corpus = 'x'' or ''1''=''1'" in sql
