import numpy as np
import pytest

from compalign_dagster.evaluation.evidence import evidence_of
from compalign_dagster.evaluation.held_out import (
    MATCHED,
    MISMATCHED,
    NEAR_MISS,
    ON_BLANK,
    ON_PHOTO,
    OWN,
    SHUFFLED,
    score_held_out,
    written,
)
from compalign_dagster.evaluation.shortcuts import LEAST_IMAGES
from compalign_dagster.evaluation.text_only import fit_text_only
from compalign_dagster.images import decode
from tests.support.seeing import Seeing, seen
from tests.support.tiny_reward import square, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"), judged=240, rated=True)


def checks(data, rule=seen):
    return evidence_of(Seeing(rule), data)["shortcuts"]


def test_a_model_that_looks_passes_every_check_that_can_be_measured(data):
    found = checks(data)
    failed = {name: check["figure"] for name, check in found.items() if not check["passed"]}
    assert not failed


@pytest.mark.parametrize(
    ("planted", "rule"),
    [
        ("shuffled_words", lambda colour, text: seen(colour, " ".join([*sorted(text.split()), "square"]))),
        ("fluent_wrong", lambda colour, text: float(len(text))),
        ("length_matched", lambda colour, text: float(len(text) // 10)),
        ("text_on_blank", lambda colour, text: seen(colour, text) + (5.0 if colour.min() > 120 else 0.0)),
        ("text_on_photo", lambda colour, text: seen(colour, text) + (5.0 if colour.min() > 25 else 0.0)),
    ],
)
def test_a_planted_shortcut_fails_its_check(data, planted, rule):
    found = checks(data, rule)[planted]
    assert found["figure"]["n"] > 0
    assert not found["passed"], found


def test_a_check_that_cannot_be_measured_fails(tmp_path):
    found = checks(tiny_data(tmp_path, judged=10))  # one test image: nothing of other images to compare with
    assert found["fluent_wrong"]["figure"]["n"] == 0
    assert not found["fluent_wrong"]["passed"]


def test_a_check_over_a_few_images_proves_nothing_though_all_of_them_are_right(tmp_path, monkeypatch):
    few = tiny_data(tmp_path, judged=60, rated=True)
    found = checks(few)["shuffled_words"]
    assert found["images"] == 6 < found["least_images"] == LEAST_IMAGES
    assert (found["figure"]["value"], found["figure"]["n"], found["passed"]) == (None, 0, False)
    monkeypatch.setattr("compalign_dagster.evaluation.shortcuts.LEAST_IMAGES", 0)  # the planted bug
    assert checks(few)["shuffled_words"]["passed"]


def test_rows_are_own_captions_wrong_ones_and_spoiled_ones_of_every_image(data):
    held = score_held_out(Seeing(), data, seed=7, probes=3)
    kinds = {kind: len(held.kind(kind)) for kind in (OWN, MISMATCHED, SHUFFLED, NEAR_MISS, ON_BLANK, ON_PHOTO)}
    images = len(held.images)
    assert kinds[OWN] == 3 * images
    assert kinds[SHUFFLED] == images
    assert (kinds[ON_BLANK], kinds[ON_PHOTO]) == (3, 3)
    assert kinds[MISMATCHED] > images
    assert all(held.rows[at].text == "a red square" for at in held.right() if "red" in held.rows[at].text)
    for at in held.kind(SHUFFLED):
        row = held.rows[at]
        assert row.text != row.answers
        assert sorted(row.text.split()) == sorted(row.answers.split())
    for at in held.kind(NEAR_MISS):
        row = held.rows[at]
        assert sum(one != other for one, other in zip(row.text.split(), row.answers.split(), strict=True)) == 1


def test_a_caption_that_people_refuse_is_not_right_even_where_it_is_the_best(tmp_path):
    backwards = tiny_data(tmp_path, judged=60, rated=True, labeler_prefers_right=False)
    held = score_held_out(Seeing(), backwards, seed=7)
    place = held.judged()
    for image in held.images:
        assert held.rows[place[image, "b"]].right  # preferred and rated 5
        assert not held.rows[place[image, "a"]].right


def test_captions_written_for_the_image_are_the_right_ones_where_they_are_given(data):
    test = [row["image_id"] for row in data.images.to_pylist() if row["split"] == "test"]
    own = {image: [f"written for {number}", "another of it"] for number, image in enumerate(test)}
    held = score_held_out(Seeing(), data, seed=7, matched=own)
    assert [held.rows[at].kind for at in held.right()] == [MATCHED] * (2 * len(test))
    for at in held.kind(MISMATCHED):
        row = held.rows[at]
        assert row.text.startswith("written for")
        assert row.text not in own[held.images[row.image]]


def test_a_caption_is_really_written_into_the_picture():
    photo = decode(square("blue", 1)).resize((200, 200))
    for picture in (written("a red square"), written("a red square", photo)):
        ink = np.asarray(picture.convert("L")) < 100
        banner = np.asarray(picture).min(axis=2) > 250
        assert ink.mean() > 0.002
        assert banner.mean() > 0.05
    assert np.asarray(written("x", photo))[0, 0].tolist() == np.asarray(photo)[0, 0].tolist()
    assert written("word " * 300).size == (384, 384)


def test_the_text_only_control_learns_what_people_like_and_sees_nothing(data):
    train = [row["image_id"] for row in data.images.to_pylist() if row["split"] == "train"]
    control = fit_text_only(data.captions, data.ranks, data.comparisons, train)
    red, green, shop = control(["a red square", "a green square", "buy now"])
    assert min(red, green) > shop + 1
    assert abs(red - green) < 0.5 * (red - shop)
    assert fit_text_only(data.captions, data.ranks, data.comparisons, []) is None
