import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.annotation.foreign import dense_ranking, write_lines
from compalign_dagster.annotation.importers import (
    SOURCES,
    composite,
    flickr8k_crowd,
    flickr8k_expert,
    import_datapack,
)
from compalign_dagster.annotation.importers_coco import (
    context_evaluation,
    crisscrossed,
    spatial_reasoning,
    sugarcrepe,
    thumb,
)
from compalign_dagster.annotation.schema import JudgedImage
from compalign_dagster.errors import InputError

DATAPACK = Path(__file__).parents[3].parent / "shared" / "datapack"


def expert_table(*rows: tuple) -> pa.Table:
    names = ("image_id", "caption_id", "caption", "own_caption", "rating_1", "rating_2", "rating_3")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


TWO_CAPTIONS = expert_table(
    ("1_a.jpg", "2_b.jpg#0", "A dog runs .", False, 1, 2, 4),
    ("1_a.jpg", "3_c.jpg#0", "A cat sits .", False, 1, 4, 1),
    ("1_a.jpg", "1_a.jpg#0", "Its own .", True, 4, 4, 4),
)


def test_expert_ratings_become_accuracy_from_one_to_five_and_nothing_else():
    (line,) = flickr8k_expert(TWO_CAPTIONS, shard="judged/0.tar")
    ratings = {judgement["labeler"]: judgement["ratings"] for judgement in line["judgements"]}
    assert ratings == {
        "flickr8k-expert-1": {"2_b.jpg#0": {"accuracy": 1.0}, "3_c.jpg#0": {"accuracy": 1.0}},
        "flickr8k-expert-2": {"2_b.jpg#0": {"accuracy": 2.3333}, "3_c.jpg#0": {"accuracy": 5.0}},
        "flickr8k-expert-3": {"2_b.jpg#0": {"accuracy": 5.0}, "3_c.jpg#0": {"accuracy": 1.0}},
    }


def test_each_expert_ranks_alone_and_equal_answers_are_ties():
    (line,) = flickr8k_expert(TWO_CAPTIONS, shard="judged/0.tar")
    assert [judgement["ranking"] for judgement in line["judgements"]] == [
        [["2_b.jpg#0", "3_c.jpg#0"]],
        [["3_c.jpg#0"], ["2_b.jpg#0"]],
        [["2_b.jpg#0"], ["3_c.jpg#0"]],
    ]


def test_captions_written_for_the_image_are_left_out_unless_asked_for():
    (line,) = flickr8k_expert(TWO_CAPTIONS, shard="s")
    assert [caption["id"] for caption in line["captions"]] == ["2_b.jpg#0", "3_c.jpg#0"]
    (whole,) = flickr8k_expert(TWO_CAPTIONS, shard="s", own_captions=True)
    assert "1_a.jpg#0" in [caption["id"] for caption in whole["captions"]]


def test_an_image_is_named_by_shard_and_webdataset_key():
    (line,) = flickr8k_expert(TWO_CAPTIONS, shard="judged/0.tar")
    assert line["image"] == {"shard": "judged/0.tar", "key": "1_a", "sha256": None}


def test_lines_do_not_depend_on_the_order_of_rows():
    backwards = TWO_CAPTIONS.take([2, 1, 0])
    assert list(flickr8k_expert(backwards, shard="s")) == list(flickr8k_expert(TWO_CAPTIONS, shard="s"))


def test_crowd_votes_become_one_labeler_with_the_share_of_yes():
    names = ("image_id", "caption_id", "caption", "own_caption", "yes_fraction")
    rows = [
        ("a.jpg", "b#0", "x", False, 0.0),
        ("a.jpg", "c#0", "y", False, 0.75),
        ("a.jpg", "a#0", "z", True, 1.0),
    ]
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    (line,) = flickr8k_crowd(table, shard="s")
    (judgement,) = line["judgements"]
    assert judgement["ranking"] == [["c#0"], ["b#0"]]
    assert judgement["ratings"] == {"b#0": {"accuracy": 1.0}, "c#0": {"accuracy": 4.0}}


def test_composite_candidates_keep_who_wrote_them():
    table = pa.table(
        {
            "image_id": ["a.jpg", "a.jpg"],
            "candidate": ["human", "neural_model"],
            "caption": ["x", "y"],
            "rating": [5, 2],
        }
    )
    (line,) = composite(table, shard="s")
    assert {caption["text"]: (caption["source"], caption.get("model")) for caption in line["captions"]} == {
        "x": ("human", None),
        "y": ("model", "neural_model"),
    }
    assert line["judgements"][0]["ranking"] == [["a.jpg#composite-human"], ["a.jpg#composite-neural_model"]]


@pytest.mark.parametrize("rating", [0, 5, None])
def test_a_rating_off_the_scale_is_refused_with_its_caption(rating):
    table = expert_table(("a.jpg", "b#0", "x", False, rating, 1, 1), ("a.jpg", "c#0", "x", False, 1, 1, 1))
    with pytest.raises(InputError, match="rating_1 of caption b#0"):
        list(flickr8k_expert(table, shard="s"))


def test_a_share_that_is_not_a_number_is_refused():
    table = pa.table(
        {
            "image_id": ["a"],
            "caption_id": ["b"],
            "caption": ["x"],
            "own_caption": [False],
            "yes_fraction": [math.nan],
        }
    )
    with pytest.raises(InputError, match="yes_fraction"):
        list(flickr8k_crowd(table, shard="s"))


def test_a_table_of_another_layout_is_refused_by_the_missing_column():
    with pytest.raises(InputError, match="found no rating_1"):
        list(flickr8k_expert(TWO_CAPTIONS.drop_columns(["rating_1"]), shard="s"))


def test_an_unknown_source_and_a_missing_table_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="expert, crowd, composite"):
        list(import_datapack(tmp_path, "experts", shard="s"))
    with pytest.raises(InputError, match="judgments_expert"):
        list(import_datapack(tmp_path, "expert", shard="s"))


@given(st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 5), min_size=1, max_size=12))
def test_a_ranking_holds_every_caption_once_in_falling_order(ratings):
    ranking = dense_ranking(ratings)
    assert sorted(caption for group in ranking for caption in group) == sorted(ratings)
    levels = [{ratings[caption] for caption in group} for group in ranking]
    assert all(len(level) == 1 for level in levels)
    assert [level.pop() for level in levels] == sorted(set(ratings.values()), reverse=True)


def test_written_lines_are_one_json_object_each(tmp_path):
    path = tmp_path / "labels" / "judgements.jsonl"
    lines = list(flickr8k_expert(TWO_CAPTIONS, shard="s"))
    assert write_lines(lines, path) == 1
    assert [json.loads(text) for text in path.read_text().splitlines()] == lines


@pytest.mark.skipif(not DATAPACK.is_dir(), reason="the data pack lies beside the repository or nowhere")
def test_the_data_pack_gives_502_judged_photos_and_2818_expert_pairs():
    lines = list(import_datapack(DATAPACK, "expert", shard="judged/00000.tar"))
    assert len(lines) == 502
    assert sum(len(line["captions"]) for line in lines) == 2818
    assert all(len(line["judgements"]) == 3 for line in lines)


def context_table(*rows: dict) -> pa.Table:
    same = {"img_id": "church4", "q_imgfit.postimg": 4, "q_relevance.postimg": 2, "q_reconstructivity.preimg": 5}
    return pa.Table.from_pylist([{**same, **row} for row in rows])


def test_context_answers_are_ratings_of_people_and_one_pooled_ranking():
    table = context_table(
        {"context": "Roof", "description": "A dome .", "rater": 1, "q_overall.postimg": 2},
        {"context": "Roof", "description": "A dome .", "rater": 2, "q_overall.postimg": 3},
        {"context": "Roof", "description": "A spire .", "rater": 3, "q_overall.postimg": 5},
        {"context": "Cross", "description": "A dome .", "rater": 4, "q_overall.postimg": 1},
    )
    (line,) = context_evaluation(table, shard="s")
    texts = {caption["id"]: caption["text"] for caption in line["captions"]}
    pooled, *people = line["judgements"][::-1]
    assert pooled["labeler"] == "context-people"
    assert [[texts[name] for name in place] for place in pooled["ranking"]] == [
        ["A spire ."],
        ["A dome ."],
        ["A dome ."],
    ]
    assert pooled["ratings"] == {}
    assert len(texts) == 3  # written for two articles: two captions
    assert len(people) == 4
    for person in people:
        assert person["ranking"] == []
        (ratings,) = person["ratings"].values()
        assert ratings == {"completeness": 2, "vividness": 5, "context": 4}  # accuracy was not asked


def test_thumb_is_precision_and_recall_and_says_which_model_wrote():
    rows = [
        {"image_id": "1.jpg", "system": system, "caption": system, "precision": p, "recall": r, "human_score": score}
        for system, p, r, score in (("Human", 5.0, 4.0, 4.5), ("Up-Down", 2.0, 3.0, 2.4))
    ]
    (line,) = thumb(pa.Table.from_pylist(rows), shard="s")
    (judgement,) = line["judgements"]
    assert judgement["ratings"]["thumb-Human"] == {"accuracy": 5, "completeness": 4}
    assert judgement["ranking"] == [["thumb-Human"], ["thumb-Up-Down"]]
    assert [caption.get("model") for caption in line["captions"]] == [None, "Up-Down"]


def test_similarity_and_truth_become_accuracy_on_the_contracts_scale():
    rows = [
        {"image_id": "1.jpg", "caption_ann_id": at, "caption": "x", "rating": value}
        for at, value in ((1, 0.0), (2, 4.0))
    ]
    (line,) = crisscrossed(pa.Table.from_pylist(rows), shard="s")
    given = line["judgements"][0]["ratings"]
    assert given == {"coco-1": {"accuracy": 1.0}, "coco-2": {"accuracy": 4.2}}
    said = [{"image_id": "1.jpg", "caption": text, "label": truth} for text, truth in (("on it", 1), ("under it", 0))]
    (line,) = spatial_reasoning(pa.Table.from_pylist(said), shard="s")
    texts = {caption["id"]: caption["text"] for caption in line["captions"]}
    found = {texts[name]: value["accuracy"] for name, value in line["judgements"][0]["ratings"].items()}
    assert found == {"on it": 5, "under it": 1}


def test_each_hard_negative_is_a_labeler_who_only_ranks():
    rows = [
        {"image_id": "1.jpg", "kind": "swap_att", "caption": " a red cup ", "hard_negative": wrong}
        for wrong in ("a blue cup", "a red plate")
    ]
    (line,) = sugarcrepe(pa.Table.from_pylist(rows), shard="s")
    texts = {caption["id"]: (caption["text"], caption["source"]) for caption in line["captions"]}
    assert len(line["judgements"]) == 2
    for judgement in line["judgements"]:
        (right,), (wrong,) = judgement["ranking"]
        assert texts[right] == ("a red cup", "human")
        assert texts[wrong][1] == "model"
        assert judgement["ratings"] == {}


@pytest.mark.parametrize(
    ("importer", "row"),
    [
        (context_evaluation, {"img_id": "i", "context": "c", "description": "d", "rater": 1, "q_overall.postimg": 6,
                              "q_relevance.postimg": 1, "q_reconstructivity.preimg": 1, "q_imgfit.postimg": 1}),
        (thumb, {"image_id": "i", "system": "s", "caption": "c", "precision": 0.5, "recall": 1.0, "human_score": 1.0}),
        (crisscrossed, {"image_id": "i", "caption_ann_id": 1, "caption": "c", "rating": 5.1}),
        (spatial_reasoning, {"image_id": "i", "caption": "c", "label": 2}),
    ],
)  # fmt: skip
def test_an_answer_off_its_scale_is_refused(importer, row):
    with pytest.raises(InputError, match="a number from"):
        list(importer(pa.Table.from_pylist([row]), shard="s"))
    lacking = {name: value for name, value in row.items() if name not in ("image_id", "img_id")}
    with pytest.raises(InputError, match="found no im"):
        list(importer(pa.Table.from_pylist([lacking]), shard="s"))


@pytest.mark.skipif(not DATAPACK.is_dir(), reason="the data pack lies beside the repository or nowhere")
@pytest.mark.parametrize("source", list(SOURCES))
def test_every_line_of_the_data_pack_keeps_the_contract(source):
    lines = list(import_datapack(DATAPACK, source, shard="s"))
    assert lines
    for line in lines:
        JudgedImage.model_validate_json(json.dumps(line))
