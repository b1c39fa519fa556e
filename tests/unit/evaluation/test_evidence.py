import copy
import json
from functools import partial

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from compalign_dagster.evaluation.evidence import evidence_from, evidence_of
from compalign_dagster.evaluation.held_out import SCORERS, joined, score_held_out
from compalign_dagster.reward.data import judged_images
from compalign_dagster.reward.loading import loader_for
from compalign_dagster.reward.metrics import across_images, baseline_scores
from tests.support.seeing import Seeing, seen
from tests.support.tiny_reward import tiny_data

NOTHING = {"value": None, "low": None, "high": None, "n": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tiny"), judged=120, rated=True)


@pytest.fixture(scope="module")
def measured(data):
    return evidence_of(Seeing(), data)


@pytest.fixture
def evidence(measured):
    return copy.deepcopy(measured)


def ratings_in_long_form(data, held):
    """(score row, accuracy and completeness alike) of every labeler and caption."""
    place = held.judged()
    rows = [row for row in data.ranks.to_pylist() if row["image_id"] in held.images]
    given = [np.mean([row[name] for name in ("accuracy", "completeness", "vividness") if row[name]]) for row in rows]
    return np.array([place[row["image_id"], row["caption_id"]] for row in rows]), np.array(given)


def test_every_scorer_has_every_figure_and_what_cannot_be_measured_says_so(evidence):
    assert list(evidence["scorers"]) == list(SCORERS)
    figures = {
        "preference_accuracy",
        "mean_preference_accuracy",
        "tau_b",
        "tau_c",
        "spearman",
        "cross_image_auc",
        "human_auc",
    }
    for name, given in evidence["scorers"].items():
        leads = set() if name == "reward" else {"reward_minus_this", "tau_c_minus_this"}
        assert set(given) == figures | leads | {"scored"}
    own = 3 * evidence["images"]
    assert evidence["scorers"]["itm"].pop("scored") == {"captions": 0, "of": own}
    assert evidence["scorers"]["cosine"]["scored"] == {"captions": own, "of": own}
    assert all(value == NOTHING for value in evidence["scorers"]["itm"].values())
    json.dumps(evidence, allow_nan=False)


def test_rank_correlations_are_over_single_ratings_in_long_form(data, evidence):
    held = score_held_out(Seeing(), data, seed=7)
    rows, rating = ratings_in_long_form(data, held)
    for name in ("reward", "caption_length"):
        score, found = held.scores[name][rows], evidence["scorers"][name]
        tau_c = partial(kendalltau, variant="c")
        for figure, slow in (("tau_b", kendalltau), ("tau_c", tau_c), ("spearman", spearmanr)):
            assert found[figure]["value"] == pytest.approx(slow(score, rating).statistic), (name, figure)
            assert found[figure]["n"] == len(rating)
        accepted, refused = score[rating >= 3][:, None], score[rating < 3][None]
        expected = ((accepted > refused) + (accepted == refused) / 2).mean()
        assert found["human_auc"]["value"] == pytest.approx(expected)


def test_a_model_that_sees_agrees_with_people_and_leads_what_does_not_see(evidence):
    found = evidence["scorers"]
    assert found["reward"]["preference_accuracy"]["value"] == 1.0
    assert found["reward"]["human_auc"]["value"] == 1.0
    assert found["caption_length"]["cross_image_auc"]["value"] < 0.9
    assert found["text_only"]["cross_image_auc"]["value"] < 0.7


def test_pairs_by_mean_are_every_two_captions_of_an_image_that_people_rate_apart(evidence):
    found = evidence["scorers"]["reward"]["mean_preference_accuracy"]
    assert (found["value"], found["n"]) == (1.0, 3 * evidence["images"])


def test_a_lead_is_the_difference_of_the_two_figures(evidence):
    found = evidence["scorers"]
    for name in ("cosine", "caption_length", "text_only"):
        lead = found["reward"]["tau_c"]["value"] - found[name]["tau_c"]["value"]
        assert found[name]["tau_c_minus_this"]["value"] == pytest.approx(lead)


def test_baselines_from_before_training_take_the_place_of_those_of_now(data):
    model = Seeing()
    before = baseline_scores(model, loader_for(model, data.shards, 1), judged_images(data, "test"))
    upside_down = {name: {place: -value for place, value in rows.items()} for name, rows in before.items()}
    found = evidence_of(model, data, before=upside_down)["scorers"]["cosine"]
    assert found["preference_accuracy"]["value"] < 0.5
    assert found["cross_image_auc"]["value"] < 0.5


def test_what_was_not_scored_before_is_taken_from_now_only_where_nothing_moved(data):
    model = Seeing()
    before = baseline_scores(model, loader_for(model, data.shards, 1), judged_images(data, "test"))
    frozen = evidence_of(model, data, before=before)["near_misses"]
    assert frozen["cosine"]["n"] == frozen["reward"]["n"] > 0
    model.images_are_frozen = False
    assert evidence_of(model, data, before=before)["near_misses"]["cosine"]["n"] == 0


def test_criteria_sources_and_lengths_have_figures_of_their_own(evidence):
    assert evidence["by_criterion"]["accuracy"]["reward"]["value"] > 0.5
    assert evidence["by_criterion"]["vividness"]["reward"]["n"] < evidence["by_criterion"]["accuracy"]["reward"]["n"]
    assert evidence["by_criterion"]["context"]["reward"] == NOTHING
    assert evidence["by_criterion"]["accuracy"]["criterion_head"] == NOTHING
    assert evidence["by_source"]["human"]["reward"]["value"] == 1.0
    assert list(evidence["by_length"]) == ["up to 8 words"]


def test_one_labeler_is_held_against_the_rest(evidence):
    assert set(evidence["one_labeler_against_rest"]) == {"l", "m"}
    assert evidence["one_labeler_against_rest"]["l"]["spearman"]["value"] > 0.9
    assert evidence["ceiling"]["n"] == 0  # the second labeler decided nothing


def test_a_calibrated_model_is_measured_against_what_people_said(data):
    model = Seeing()
    model.calibration[:] = model.calibration.new_tensor([8.0, -12.0])  # a yes above a reward of 1.5
    found = evidence_of(model, data)["calibration"]
    assert found["ece"]["value"] < 0.05
    assert (found["slope"], found["offset"]) == (8.0, -12.0)
    assert evidence_of(Seeing(), data)["calibration"]["ece"] == NOTHING


def test_rewards_that_compare_across_images_pass(evidence):
    passed, said = across_images({"evidence": evidence})
    assert passed, said
    assert "100% of the separation is left" in said


def test_a_model_whose_rewards_carry_an_offset_of_each_image_fails_although_it_ranks_as_well(data):
    """The planted bug of this check: a good model plus noise that depends on the image alone."""

    def offset(colour, text):
        return seen(colour, text) + 3 * float(np.random.default_rng(colour.astype(np.int64)).normal())

    found = evidence_of(Seeing(offset), data)
    assert found["scorers"]["reward"]["preference_accuracy"]["value"] == 1.0
    assert found["scorers"]["reward"]["cross_image_auc"]["value"] < 0.85
    passed, said = across_images({"evidence": found})
    assert not passed
    assert "a cut over all images means nothing" in said


def test_beyond_the_interval_few_images_are_not_enough(evidence):
    matched = evidence["across_images"]["matched"]
    matched["kept"] |= {"value": 0.9, "low": 0.7}
    assert across_images({"evidence": evidence})[0]
    passed, said = across_images({"evidence": evidence}, beyond_interval=True)
    assert not passed
    assert "95 % interval from 70%" in said
    matched["kept"] |= {"low": None}
    assert not across_images({"evidence": evidence}, beyond_interval=True)[0]


def test_what_was_not_measured_does_not_pass():
    assert across_images({})[0] is False
    assert across_images({"evidence": {"across_images": {"matched": {"kept": NOTHING}}}})[0] is False


def test_a_model_that_sees_nothing_does_not_pass(data):
    passed, said = across_images({"evidence": evidence_of(Seeing(lambda colour, text: -len(text)), data)})
    assert not passed, said


def test_pooled_folds_are_one_table(data):
    held = score_held_out(Seeing(), data, seed=7)
    halves = [held.only(held.images[:5]), held.only(held.images[5:])]
    whole = joined(halves)
    assert whole.images == held.images
    assert sorted(map(str, whole.rows)) == sorted(map(str, held.rows))
    chances = np.full(len(whole.rows), np.nan)
    one, other = (evidence_from(table, data, chances)["scorers"]["reward"] for table in (held, whole))
    assert one == other
