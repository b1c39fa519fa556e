import json

import pytest

from compalign_dagster.annotation import tables
from compalign_dagster.annotation.assemble import Annotations, comparisons_of
from compalign_dagster.annotation.summary import agreement, summarize
from compalign_dagster.parquet import from_rows


def comparisons(rankings: dict[tuple[str, str], list[str]]):
    """Rankings such as {("image", "labeler"): ["a", "bc"]} as a table of comparisons."""
    rows = [
        {"image_id": image, "labeler": labeler, "better": better, "worse": worse, "tie": tie}
        for (image, labeler), ranking in rankings.items()
        for better, worse, tie in comparisons_of(ranking)
    ]
    return from_rows(rows, tables.COMPARISONS)


def test_labelers_agree_when_they_rank_a_pair_the_same_way_round_or_both_tie_it():
    found = agreement(comparisons({("1", "x"): ["a", "bc"], ("1", "y"): ["b", "a", "c"]}))
    # a-b: other way round; a-c: the same; b-c: a tie against none
    assert found["pairwise agreement"]["value"] == pytest.approx(1 / 3)
    assert found["pairwise agreement"]["n"] == 3
    assert found["agreement without ties"]["value"] == pytest.approx(1 / 2)
    assert found["agreement without ties"]["n"] == 2


def test_three_labelers_are_three_pairs_and_images_of_one_labeler_count_nothing():
    rankings = {("1", name): ["a", "b"] for name in "xyz"} | {("2", "x"): ["a", "b", "c"]}
    found = agreement(comparisons(rankings))
    assert found["pairwise agreement"]["n"] == 3
    assert found["pairwise agreement"]["value"] == 1


def test_without_a_shared_image_there_is_no_agreement_to_report():
    assert agreement(comparisons({("1", "x"): ["a", "b"]})) == {}
    assert agreement(tables.COMPARISONS.empty_table()) == {}


def test_agreement_of_labelers_who_only_tie_has_no_value_but_still_a_count():
    found = agreement(comparisons({("1", "x"): ["ab"], ("1", "y"): ["ab"]}))
    assert found["pairwise agreement"]["value"] == 1
    assert found["agreement without ties"] == {"value": None, "low": None, "high": None, "n": 0}


def test_a_summary_counts_by_split_source_labeler_and_reason_as_json():
    captions = [
        {"image_id": "1", "caption_id": name, "caption": name, "caption_source": source}
        for name, source in zip("abc", ("human", "model", "model"), strict=True)
    ]
    ranks = [
        {"image_id": "1", "labeler": "x", "caption_id": "a", "rank": 1, "accuracy": 5.0},
        {"image_id": "1", "labeler": "x", "caption_id": "b", "rank": 2, "accuracy": 2.0},
        {"image_id": "1", "labeler": "x", "caption_id": "c", "rank": None, "accuracy": None},
    ]
    image = {"image_id": "1", "shard": "s", "key": "k", "image_offset": 0, "image_length": 1, "split": "test"}
    refused = [{"file": "f", "line": line, "reason": "not_json", "detail": ""} for line in (2, 3)]
    found = summarize(
        Annotations(
            images=from_rows([image], tables.IMAGES),
            captions=from_rows(captions, tables.CAPTIONS),
            ranks=from_rows(ranks, tables.RANKS),
            comparisons=comparisons({("1", "x"): ["a", "b"]}),
            rejected=from_rows(refused, tables.REJECTED),
            lines=3,
            used=1,
        )
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["images_by_split"] == found["comparisons_by_split"] == {"test": 1}
    assert found["captions_by_source"] == {"human": 1, "model": 2}
    assert found["mean_rank_of_source"] == {"human": 1, "model": 2}
    assert found["judgements_by_labeler"] == {"x": 1}
    assert found["rejected_by_reason"] == {"not_json": 2}
    assert found["mean_rating_of_labeler"]["x"] == {
        "accuracy": 3.5,
        "completeness": None,
        "vividness": None,
        "context": None,
    }
    assert (found["lines"], found["lines_used"], found["lines_rejected"], found["ties"]) == (3, 1, 2, 0)
