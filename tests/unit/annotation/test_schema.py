import json

import pytest
from pydantic import ValidationError

from compalign_dagster.annotation.schema import MAX_CAPTION_CHARACTERS, JudgedImage, explain
from tests.unit.annotation.lines import judgement, line


def refusal(value: object) -> tuple[str, str]:
    with pytest.raises(ValidationError) as caught:
        JudgedImage.model_validate_json(json.dumps(value))
    return explain(caught.value)


def caption(**changes: object) -> dict:
    return {"id": "a", "text": "a red circle", "source": "human", **changes}


def with_captions(*captions: dict) -> dict:
    return line(captions=list(captions), judgements=[judgement(ranking=[["a"]])])


def with_judgement(**changes: object) -> dict:
    return line(judgements=[judgement(**changes)])


def test_the_example_of_the_contract_is_valid():
    judged = JudgedImage.model_validate_json(
        """{"image": {"shard": "cc12m/00017.tar", "key": "000171234", "sha256": null},
            "captions": [{"id": "a", "text": "...", "source": "human"},
                         {"id": "b", "text": "...", "source": "crawled"},
                         {"id": "c", "text": "...", "source": "model", "model": "..."}],
            "judgements": [{"labeler": "l-03", "ranking": [["a"], ["b", "c"]],
                            "ratings": {"a": {"accuracy": 5, "completeness": 4,
                                              "vividness": 3, "context": 5}},
                            "seconds": 41.2, "guideline": "1"}]}"""
    )
    assert judged.judgements[0].ranking == [["a"], ["b", "c"]]
    assert judged.judgements[0].ratings["a"].vividness == 3


@pytest.mark.parametrize(
    ("value", "reason", "told"),
    [
        ([], "not_an_object", ""),
        (None, "not_an_object", ""),
        ({}, "field_missing", "image"),
        (line(image={"key": None}), "image_not_named", "image"),
        (line(image={"shard": "judged/00000.tar"}), "image_not_named", "image"),
        (line(image={"sha256": "abc"}), "value_invalid", "image.sha256"),
        (line(captions=[]), "value_invalid", "captions"),
        (line(judgements=[]), "value_invalid", "judgements"),
        (line(judgments=[]), "field_unknown", "judgments"),
        (with_captions(caption(), caption()), "caption_twice", "'a'"),
        (with_captions(caption(text=" \n")), "caption_blank", "'a'"),
        (with_captions(caption(text="x" * (MAX_CAPTION_CHARACTERS + 1))), "value_invalid", "captions.0.text"),
        (with_captions(caption(source="web")), "value_invalid", "captions.0.source"),
        (with_captions(caption(model="blip")), "captioner_unexpected", "human"),
        (with_captions(caption(id=1)), "value_invalid", "captions.0.id"),
        (with_judgement(ranking=[["a"], ["z"]]), "caption_unknown", "'z'"),
        (with_judgement(ratings={"z": {"accuracy": 3}}), "caption_unknown", "'z'"),
        (with_judgement(ranking=[["a"], ["b", "a"]]), "caption_ranked_twice", "'a'"),
        (with_judgement(ranking=[["a", "a"]]), "caption_ranked_twice", "'a'"),
        (with_judgement(ranking=[["a"], []]), "value_invalid", "ranking.1"),
        (with_judgement(ranking=["a", "b"]), "value_invalid", "ranking.0"),
        (with_judgement(ranking=[]), "judgement_empty", "judgements.0"),
        (with_judgement(ratings={"a": {"accuracy": 0}}), "value_invalid", "accuracy"),
        (with_judgement(ratings={"a": {"accuracy": 5.01}}), "value_invalid", "accuracy"),
        (with_judgement(ratings={"a": {"accuracy": "5"}}), "value_invalid", "accuracy"),
        (with_judgement(ratings={"a": {"accuracy": True}}), "value_invalid", "accuracy"),
        (with_judgement(ratings={"a": {"beauty": 5}}), "field_unknown", "beauty"),
        (with_judgement(seconds=-1), "value_invalid", "seconds"),
        (with_judgement(labeler=""), "value_invalid", "labeler"),
        (line(judgements=[judgement("l-1"), judgement("l-1")]), "labeler_twice", "'l-1'"),
    ],
)
def test_a_line_that_breaks_a_rule_is_refused_with_the_reason_and_the_place(value, reason, told):
    found, detail = refusal(value)
    assert found == reason
    assert told in detail


def test_numbers_that_are_not_finite_are_refused():
    text = json.dumps(with_judgement(ratings={"a": {"accuracy": float("nan")}}))
    with pytest.raises(ValidationError):
        JudgedImage.model_validate_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"ratings": {"a": {"accuracy": 1}, "b": {"context": 5, "vividness": None}}},
        {"ranking": [["a", "b", "c"]]},
        {"ranking": [["b"]]},
        {"ranking": [], "ratings": {"a": {"accuracy": 2.3333}}},
        {"seconds": None, "guideline": None},
    ],
)
def test_what_a_labeler_leaves_out_is_no_mistake(changes):
    assert JudgedImage.model_validate_json(json.dumps(with_judgement(**changes)))


def test_a_detail_is_short_and_can_be_written_to_any_file():
    reason, detail = refusal(with_captions(caption(source="\ud800" * 5000)))
    assert len(detail.encode()) < 3000
    assert reason in ("value_invalid", "not_json")
