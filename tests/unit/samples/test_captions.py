import random
from dataclasses import replace

import pytest

from compalign_dagster.samples.captions import (
    CRITERIA,
    GOOD_KINDS,
    MIXTURES,
    WEIGHTS,
    agreement,
    draw_kind,
    write_caption,
)
from compalign_dagster.samples.languages import english, english_group, foreign
from compalign_dagster.samples.scenes import Group, Scene, random_scene

SCENE = Scene((Group(1, "large", "orange", "cross"), Group(2, "small", "blue", "cross")), "left", "white")
KINDS = sorted(set().union(*MIXTURES.values()))


@pytest.fixture
def scenes() -> list[Scene]:
    rng = random.Random(21)
    return [random_scene(rng) for _ in range(300)]


def test_a_complete_caption_names_all_there_is():
    told = english(SCENE, random.Random(1))
    assert told.endswith("a large orange cross to the left of two small blue crosses on a white background")


def test_an_article_follows_the_word_after_it():
    assert english_group(Group(1, "large", "orange", "ring"), size=False) == "an orange ring"
    assert english_group(Group(1, "large", "orange", "ring")) == "a large orange ring"


def test_other_languages_name_both_groups_and_their_places():
    assert foreign(SCENE, "de") == "links ein Kreuz in Orange, rechts zwei Kreuze in Blau"
    assert foreign(SCENE, "es").startswith("a la izquierda un signo más de color naranja, a la derecha dos")
    assert foreign(SCENE, "fr").endswith("à droite deux signes plus de couleur bleu")


def test_agreement_is_whole_with_the_scene_itself_and_ignores_the_order_in_which_groups_are_told():
    turned = Scene(SCENE.groups[::-1], "right", SCENE.background)
    assert agreement(SCENE, SCENE) == 1
    assert agreement(turned, SCENE) == 1


@pytest.mark.parametrize("change", [{"relation": "above"}, {"background": "pink"}, {"groups": SCENE.groups[:1]}])
def test_every_mistake_costs_agreement(change):
    assert agreement(replace(SCENE, **change), SCENE) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_ratings_stay_on_the_scale(kind, scenes):
    rng = random.Random(2)
    for scene in scenes:
        caption = write_caption(scene, kind, rng)
        assert caption.text.strip()
        assert all(1 <= getattr(caption.quality, name) <= 5 for name in CRITERIA)


def test_good_captions_are_better_than_spoiled_ones_on_average_and_wholly_right(scenes):
    rng = random.Random(3)
    written = {kind: [write_caption(scene, kind, rng) for scene in scenes] for kind in KINDS}
    means = {kind: sum(item.quality.overall for item in items) / len(items) for kind, items in written.items()}
    worst_good = min(means[kind] for kind in GOOD_KINDS)
    assert all(means[kind] < worst_good for kind in KINDS if kind not in GOOD_KINDS)
    assert all(item.quality.accuracy == 5 for kind in GOOD_KINDS for item in written[kind])
    assert all(item.quality.accuracy < 5 for kind in KINDS if kind not in GOOD_KINDS for item in written[kind])


def test_a_wrong_relation_needs_something_to_relate():
    alone = Scene((Group(1, "small", "red", "star"),), None, "grey")
    assert write_caption(alone, "wrong_relation", random.Random(1)).kind == "wrong_attribute"


def test_the_overall_rating_is_a_weighted_mean():
    assert sum(WEIGHTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("corpus", MIXTURES)
def test_filtering_pays_because_most_of_a_crawl_is_spoiled(corpus):
    rng = random.Random(4)
    kinds = [draw_kind(MIXTURES[corpus], rng) for _ in range(3000)]
    assert set(kinds) == set(MIXTURES[corpus])
    assert 0.2 < sum(kind in GOOD_KINDS for kind in kinds) / len(kinds) < 0.42
