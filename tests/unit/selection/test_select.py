import math
import tempfile
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compalign_dagster.errors import InputError
from compalign_dagster.selection.policy import Policy, keep_count
from compalign_dagster.selection.select import choose, decide, ranked_by, read_scores
from tests.unit.selection.builders import frame, occurrence, write_scores

# few distinct rewards, so that ties at the cut are the rule
REWARDS = st.lists(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 2.0]), min_size=0, max_size=40)
FRACTIONS = st.decimals(0, 1, places=3)


def rows_of(rewards, corpora=("sample",)):
    return [occurrence(at, reward, corpus=corpora[at % len(corpora)]) for at, reward in enumerate(rewards)]


@given(REWARDS, FRACTIONS)
def test_exactly_k_are_kept_and_nothing_is_lost(rewards, fraction):
    rows = rows_of(rewards)
    decided = choose(frame(rows), Policy(keep_fraction=fraction))
    assert decided["kept"].sum() == keep_count(fraction, len(rows))
    assert set(decided["pair_id"]) == {row["pair_id"] for row in rows}
    assert decided.height == len(rows)
    assert (decided["reason"].is_null() == decided["kept"]).all()


@given(REWARDS, FRACTIONS)
def test_no_dropped_pair_outranks_a_kept_one(rewards, fraction):
    decided = choose(frame(rows_of(rewards)), Policy(keep_fraction=fraction))

    def rank(row):
        return (-row["reward"], row["pair_id"], row["shard"], row["key"], row["caption_index"])

    kept = [rank(row) for row in decided.filter("kept").to_dicts()]
    dropped = [rank(row) for row in decided.filter(~pl.col("kept")).to_dicts()]
    assert not kept or not dropped or max(kept) < min(dropped)


@given(REWARDS, FRACTIONS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_the_order_and_the_batching_of_the_scores_do_not_matter(rewards, fraction, random):
    rows = rows_of(rewards, ("a", "b"))
    policy = Policy(keep_fraction=fraction, per_corpus={"b": "0.5"})
    with tempfile.TemporaryDirectory() as folder:
        whole = decide([write_scores(Path(folder, "whole.parquet"), rows)], policy)
        random.shuffle(rows)
        cuts = sorted(random.randint(0, len(rows)) for _ in range(3))
        parts = [rows[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
        paths = [write_scores(Path(folder, f"{at}.parquet"), part) for at, part in enumerate(parts)]
        random.shuffle(paths)
        assert decide(paths, policy).equals(whole)


@given(REWARDS, st.integers(0, 20), st.integers(0, 20))
def test_a_larger_fraction_keeps_all_that_a_smaller_one_keeps(rewards, one, other):
    rows = frame(rows_of(rewards))
    small, large = (
        set(choose(rows, Policy(keep_fraction=f"{n / 20}")).filter("kept")["pair_id"]) for n in sorted((one, other))
    )
    assert small <= large


@given(REWARDS, FRACTIONS, FRACTIONS)
def test_each_corpus_with_a_budget_of_its_own_keeps_exactly_its_share(rewards, own, rest):
    rows = rows_of(rewards, ("a", "b", "c"))
    decided = choose(frame(rows), Policy(keep_fraction=rest, per_corpus={"b": own}))
    b = decided.filter(pl.col("corpus") == "b")
    others = decided.filter(pl.col("corpus") != "b")
    assert b["kept"].sum() == keep_count(own, b.height)
    assert others["kept"].sum() == keep_count(rest, others.height)


def test_equal_rewards_are_decided_by_pair_id_then_place():
    rows = rows_of([1.0] * 6)
    decided = choose(frame(rows), Policy(keep_fraction="0.5"))
    assert set(decided.filter("kept")["pair_id"]) == set(sorted(row["pair_id"] for row in rows)[:3])
    assert set(decided.filter(~pl.col("kept"))["reason"]) == {"tied_at_cut"}


def test_copies_of_one_pair_are_decided_by_their_place():
    rows = [occurrence(0, 1.0) | {"shard": f"sample/{at}.tar"} for at in (2, 0, 1)]
    kept = choose(frame(rows), Policy(keep_fraction="0.34")).filter("kept")
    assert kept["shard"].to_list() == ["sample/0.tar"]


def test_reasons_say_why_a_pair_was_dropped():
    rows = rows_of([3.0, 2.0, 2.0, 1.0]) + rows_of([9.0] * 2, ("none",))
    decided = choose(frame(rows), Policy(keep_fraction="0.5", per_corpus={"none": "0"}))
    reasons = dict(decided.filter(~pl.col("kept")).group_by("reason").len().iter_rows())
    assert reasons == {"below_cut": 1, "tied_at_cut": 1, "no_budget": 2}


@pytest.mark.parametrize(("fraction", "kept"), [("0", 0), ("1", 7)])
def test_none_and_all_are_legal_fractions(fraction, kept):
    assert choose(frame(rows_of([0.5] * 7)), Policy(keep_fraction=fraction))["kept"].sum() == kept


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_refused_by_pair_and_file(tmp_path, broken):
    rows = rows_of([1.0, broken, 2.0])
    write_scores(tmp_path / "good.parquet", rows_of([1.0] * 3, ("other",)))
    write_scores(tmp_path / "bad.parquet", rows)
    with pytest.raises(InputError) as caught:
        decide(sorted(tmp_path.iterdir()), Policy(keep_fraction="0.3"))
    assert rows[1]["pair_id"] in str(caught.value)
    assert "bad.parquet" in str(caught.value)


def test_scores_of_two_models_are_refused_with_both_files(tmp_path):
    one = write_scores(tmp_path / "one.parquet", rows_of([1.0, 2.0]))
    other = write_scores(
        tmp_path / "other.parquet", [row | {"model_version": "f" * 64} for row in rows_of([1.0], ("x",))]
    )
    with pytest.raises(InputError, match=r"2 model versions.*one\.parquet.*other\.parquet"):
        decide([one, other], Policy(keep_fraction="0.3"))


def test_an_occurrence_scored_twice_is_refused(tmp_path):
    one = write_scores(tmp_path / "one.parquet", rows_of([1.0, 2.0]))
    copy = write_scores(tmp_path / "copy.parquet", rows_of([1.0, 2.0]))
    assert decide([one, one], Policy(keep_fraction="1")).height == 2  # one file given twice is one file
    with pytest.raises(InputError, match="2 occurrences"):
        decide([one, copy], Policy(keep_fraction="1"))


def test_a_file_that_is_no_score_table_is_named(tmp_path):
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"text\.parquet"):
        decide([tmp_path / "text.parquet"], Policy(keep_fraction="1"))
    bare = pq.read_table(write_scores(tmp_path / "bare.parquet", rows_of([1.0])))
    pq.write_table(bare.drop_columns(["reward"]), tmp_path / "bare.parquet")
    with pytest.raises(InputError, match="no reward"):
        decide([tmp_path / "bare.parquet"], Policy(keep_fraction="1"))
    with pytest.raises(InputError, match="at least one file"):
        decide([], Policy(keep_fraction="1"))


def test_without_a_corpus_column_the_corpus_is_the_first_folder(tmp_path):
    rows = [*rows_of([1.0], ("cc3m",)), occurrence(9, 1.0) | {"shard": "00001.tar"}]
    table = pq.read_table(write_scores(tmp_path / "scores.parquet", rows)).drop_columns(["corpus"])
    pq.write_table(table, tmp_path / "scores.parquet")
    assert set(read_scores([tmp_path / "scores.parquet"])["corpus"]) == {"cc3m", "crawl"}


def test_other_columns_can_be_carried_and_ranked_by(tmp_path):
    rows = [row | {"cosine": at / 10} for at, row in enumerate(rows_of([5.0, 4.0, 3.0]))]
    scores = read_scores([write_scores(tmp_path / "scores.parquet", rows)], extra=["cosine"])
    assert ranked_by(scores, "cosine")["reward"].to_list() == [3.0, 4.0, 5.0]
