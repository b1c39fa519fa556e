import json

import pytest

from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.selection import dataset
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.select import decide
from compalign_dagster.selection.tables import DROPPED, KEPT, SELECTION
from tests.unit.selection.builders import occurrence, write_pairs, write_scores

POLICY = Policy(keep_fraction="0.4", per_corpus={"unknown": "0.1"})


@pytest.fixture
def rows():
    return [occurrence(at, float(at * 7 % 10), image=at - at % 2) for at in range(20)]


@pytest.fixture
def decided(tmp_path, rows):
    return decide([write_scores(tmp_path / "scores.parquet", rows)], POLICY)


def test_kept_and_dropped_are_all_pairs_with_their_places(tmp_path, rows, decided):
    pairs = [write_pairs(tmp_path / f"{at}.parquet", rows[at::3]) for at in range(3)]
    built = dataset.build(decided, pairs, POLICY)
    assert built.kept.schema.equals(KEPT, check_metadata=True)
    assert built.dropped.schema.equals(DROPPED, check_metadata=True)
    assert (built.kept.num_rows, built.dropped.num_rows) == (8, 12)
    place = {row["pair_id"]: (row["image_offset"], row["image_length"], row["caption"]) for row in rows}
    for row in built.kept.to_pylist():
        assert (row["image_offset"], row["image_length"], row["caption"]) == place[row["pair_id"]]
    found = built.kept["pair_id"].to_pylist() + built.dropped["pair_id"].to_pylist()
    assert sorted(found) == sorted(place)


def test_kept_pairs_are_in_the_order_in_which_tars_are_read(tmp_path, rows, decided):
    built = dataset.build(decided, [write_pairs(tmp_path / "pairs.parquet", rows[::-1])], POLICY)
    places = [(row["shard"], row["image_offset"], row["caption_index"]) for row in built.kept.to_pylist()]
    assert places == sorted(places)


def test_facts_are_json_that_add_up(tmp_path, rows, decided):
    facts = dataset.build(decided, [write_pairs(tmp_path / "pairs.parquet", rows)], POLICY).facts
    json.dumps(facts, allow_nan=False)
    assert facts["pairs"] == facts["kept"] + facts["dropped"] + facts["quarantined"] == 20
    assert sum(facts["dropped_by_reason"].values()) == facts["dropped"]
    assert facts["budgets_without_pairs"] == ["unknown"]
    (budget,) = facts["budgets"]
    assert (budget["n"], budget["k"], budget["fraction"]) == (20, 8, "0.4")
    assert (budget["cut"], budget["first_dropped"], budget["tied_at_cut"]) == (6.0, 5.0, 0)


def test_a_pair_that_is_neither_scored_nor_quarantined_is_an_error(tmp_path, rows, decided):
    extra = [*rows, occurrence(98, 0.0)]
    pairs = [write_pairs(tmp_path / "pairs.parquet", extra)]
    with pytest.raises(ConservationError, match="21 pairs"):
        dataset.build(decided, pairs, POLICY)
    assert dataset.build(decided, pairs, POLICY, quarantined=1).facts["quarantined"] == 1


def test_scores_of_another_index_are_refused_by_pair(tmp_path, rows, decided):
    other = [*rows[:-1], rows[-1] | {"pair_id": "0" * 32}]
    everything = Policy(keep_fraction="1")
    kept = decide([tmp_path / "scores.parquet"], everything)
    with pytest.raises(InputError, match=rows[-1]["pair_id"]):
        dataset.build(kept, [write_pairs(tmp_path / "pairs.parquet", other)], everything)


def test_nothing_scored_makes_an_empty_dataset(tmp_path):
    none = decide([write_scores(tmp_path / "scores.parquet", [])], POLICY)
    built = dataset.build(none, [write_pairs(tmp_path / "pairs.parquet", [])], POLICY)
    assert built.kept.num_rows == built.dropped.num_rows == built.facts["pairs"] == 0
    assert built.kept.schema.equals(KEPT)
    assert dataset.histogram(none)["edges"] == []
    assert dataset.examples(none, [tmp_path / "pairs.parquet"])["kept"] == []


def test_what_keep_writes_is_the_contract(decided):
    table = dataset.selection_table(decided)
    assert table.schema.equals(SELECTION)
    assert table.column_names == ["pair_id", "shard", "key", "caption_index", "reward"]
    assert table.num_rows == 8


def test_every_pair_is_in_one_bar_of_the_histogram(decided):
    bars = dataset.histogram(decided, 5)
    assert len(bars["edges"]) == 6
    assert (sum(bars["kept"]), sum(bars["dropped"])) == (8, 12)


def test_examples_near_the_cut_are_the_ones_next_to_it(tmp_path, rows, decided):
    found = dataset.examples(decided, [write_pairs(tmp_path / "pairs.parquet", rows)], 4)
    assert [row["reward"] for row in found["above"]] == [7.0, 7.0, 6.0, 6.0]
    assert [row["reward"] for row in found["below"]] == [5.0, 5.0, 4.0, 4.0]
    assert all(row["kept"] for row in found["kept"])
    assert {"caption", "image_offset", "image_length"} <= set(found["dropped"][0])
