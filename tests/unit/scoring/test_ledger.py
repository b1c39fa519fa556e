import pytest

from compalign_dagster.errors import ConservationError
from compalign_dagster.scoring.ledger import coverage, fold
from compalign_dagster.scoring.tables import LEDGER


def row(shard, batch, **changes):
    return {
        "shard": shard,
        "batch": batch,
        "model_version": "m",
        "scores_key": f"scored/{batch}/{shard}",
        "work_key": "w",
        "data_version": "d",
        "pairs": 3,
        "scored": 2,
        "quarantined": 1,
        "rejected": 0,
        "rejected_key": None,
        **changes,
    }


def test_live_shards_come_sorted_and_history_is_passed_over():
    live = {"b": "batch-2", "a": "batch-1"}
    rows = [row("b", "batch-2"), row("b", "batch-1"), row("gone", "batch-1"), row("a", "batch-1")]
    ledger = fold(live, rows)
    assert ledger.schema.equals(LEDGER)
    assert list(zip(ledger["shard"].to_pylist(), ledger["batch"].to_pylist(), strict=True)) == [
        ("a", "batch-1"),
        ("b", "batch-2"),
    ]


def test_a_live_shard_without_scores_lowers_the_coverage():
    live = {"a": "batch-1", "b": "batch-1"}
    assert coverage(fold(live, [row("a", "batch-1")]), live) == 0.5
    assert coverage(fold(live, []), live) == 0.0
    assert coverage(fold({}, []), {}) == 1.0


def test_scores_of_superseded_bytes_do_not_count():
    live = {"a": "batch-2"}
    assert coverage(fold(live, [row("a", "batch-1")]), live) == 0.0


def test_a_row_that_lost_a_pair_is_refused():
    with pytest.raises(ConservationError, match="shard a in batch-1.*3 pairs.*2 \\+ 0 \\+ 0"):
        fold({"a": "batch-1"}, [row("a", "batch-1", quarantined=0)])


def test_a_table_without_the_columns_of_a_cascade_has_turned_nothing_down():
    old = {name: value for name, value in row("a", "batch-1").items() if not name.startswith("rejected")}
    assert fold({"a": "batch-1"}, [old]).equals(fold({"a": "batch-1"}, [row("a", "batch-1")]))


def test_pairs_that_a_cascade_turned_down_are_accounted_for():
    live = {"a": "batch-1"}
    turned_down = row("a", "batch-1", pairs=7, rejected=4, rejected_key="scored/a/rejected.parquet")
    assert fold(live, [turned_down])["rejected"].to_pylist() == [4]
    with pytest.raises(ConservationError, match="8 pairs.*2 \\+ 4 \\+ 1"):
        fold(live, [{**turned_down, "pairs": 8}])


def test_the_same_row_twice_is_one_and_two_sets_of_scores_are_refused():
    live = {"a": "batch-1"}
    assert len(fold(live, [row("a", "batch-1"), row("a", "batch-1")])) == 1
    with pytest.raises(ConservationError, match="two"):
        fold(live, [row("a", "batch-1"), row("a", "batch-1", model_version="n")])
