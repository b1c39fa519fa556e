"""The gate: one failing figure refuses, by its name, and nothing else does."""

import copy
from typing import Any

import numpy as np
import pytest

from compalign_dagster.reward.promotion import BASELINES, SHORTCUTS, Gate, claims, judge
from compalign_dagster.statistics import bootstrap_mean


def estimate(low: float | None, half: float = 0.05, n: int = 200) -> dict[str, Any]:
    if low is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": low + half, "low": low, "high": low + 2 * half, "n": n}


def good() -> dict[str, Any]:
    """Figures that pass every question."""
    scorers: dict[str, Any] = {
        name: {"preference_accuracy": estimate(0.55), "reward_minus_this": estimate(0.02)} for name in BASELINES
    }
    scorers["reward"] = {"preference_accuracy": estimate(0.6)}
    shortcuts = {
        name: {"passed": True, "figure": estimate(0.7), "least": 0.5, "meaning": "the caption beats it"}
        | {"images": 100, "least_images": 8}
        for name in SHORTCUTS
    }
    separation = {"within": estimate(0.85), "across": estimate(0.8), "kept": estimate(0.85)}
    return {
        "test_images": 100,
        "preference_accuracy": estimate(0.6),
        "cross_image_auc": estimate(0.8),
        "reward_spread": 1.0,
        "validation_stuck_at_ln2": False,
        "evidence": {
            "scorers": scorers,
            "calibration": {"ece": estimate(0.01), "bins": []},
            "across_images": {"matched": separation, "least": 0.8},
            "shortcuts": shortcuts,
        },
    }


def changed(*path: str, to: Any = KeyError) -> dict[str, Any]:
    """Good figures with one replaced, or taken away."""
    metrics = copy.deepcopy(good())
    inner = metrics
    for name in path[:-1]:
        inner = inner[name]
    if to is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return metrics


SCORERS = ("evidence", "scorers")
NOTHING = estimate(None)
MEASURED_ON_THREE = {"passed": False, "figure": NOTHING, "least": 0.5, "images": 3, "least_images": 8}
BROKEN = {
    "preference_accuracy": NOTHING,
    "reward_minus_this": NOTHING,
    "scored": {"captions": 297, "of": 300},
}


def test_a_model_with_good_figures_passes_and_every_claim_shows_one():
    found = claims(good())
    assert all(holds for _, holds, _ in found), found
    assert judge(good()) == []
    assert all(figure for _, _, figure in found)
    assert sum("95 % interval" in figure for _, _, figure in found) >= 10


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (changed("test_images", to=19), "Only 19 held-out images"),
        (changed("test_images"), "Only 0 held-out images"),
        (changed("preference_accuracy", to=estimate(0.5)), "preference_accuracy"),
        (changed("preference_accuracy", to=estimate(float("nan"))), "preference_accuracy"),
        (changed("preference_accuracy"), "No held-out preference_accuracy"),
        (changed("preference_accuracy", to={"value": 0.9, "low": None, "high": None, "n": 4}), "preference_accuracy"),
        (changed("cross_image_auc", to=estimate(0.6)), "cross_image_auc"),
        (changed("cross_image_auc"), "No held-out cross_image_auc"),
        (changed("evidence", "across_images"), "across images was not measured"),
        (changed("evidence", "across_images", "matched", "kept", to=estimate(0.5)), "55% of the separation is left"),
        *((changed(*SCORERS, name, "reward_minus_this", to=estimate(0.0)), name) for name in BASELINES),
        *((changed(*SCORERS, name, "reward_minus_this"), f"No gain over {name}") for name in BASELINES),
        *((changed(*SCORERS, name), f"No gain over {name}") for name in BASELINES),
        (changed(*SCORERS, "another", to={"reward_minus_this": estimate(-0.01)}), "another"),
        (
            changed(*SCORERS, "text_only", to={"preference_accuracy": NOTHING, "reward_minus_this": NOTHING}),
            "text_only",
        ),
        (changed("evidence", "calibration", "ece", to=estimate(0.2)), "calibration error is 0.250"),
        (changed("evidence", "calibration"), "No calibration error"),
        (changed("evidence", "calibration", "ece", to=NOTHING), "No calibration error"),
        (changed("evidence", "shortcuts", "fluent_wrong", "passed", to=False), "beats it) failed: 0.750"),
        (
            changed("evidence", "shortcuts", "fluent_wrong", to=MEASURED_ON_THREE),
            "not measured: 3 images can show it, at least 8 are needed",
        ),
        (
            changed("evidence", "across_images", "matched", "kept", to=estimate(0.75, half=0.1)),
            "85% of the separation is left (95 % interval from 75%); at least 80% is needed",
        ),
        (changed(*SCORERS, "itm", to=BROKEN), "itm on the same held-out images was measured. It is not a number for 3"),
        (changed("evidence", "shortcuts", "fluent_wrong", "passed"), "fluent_wrong"),
        *((changed("evidence", "shortcuts", name), f"The shortcut check {name} was not made") for name in SHORTCUTS),
        (changed("evidence", "shortcuts", "another", to={"passed": False}), "another"),
        (changed("validation_stuck_at_ln2", to=True), "ln 2"),
        (changed("reward_spread"), "No reward_spread"),
        (changed("reward_spread", to=0.0), "do not vary"),
    ],
)
def test_a_model_is_refused_for_one_reason_that_names_the_figure(metrics, said):
    (reason,) = judge(metrics)
    assert said in reason
    assert sum(not holds for _, holds, _ in claims(metrics)) == 1


@pytest.mark.parametrize("name", ["cosine", "itm", "label_free"])
def test_a_score_that_the_backbone_lacks_is_not_asked_for(name):
    metrics = changed(*SCORERS, name, to={"preference_accuracy": NOTHING, "reward_minus_this": NOTHING})
    assert judge(metrics) == []
    assert "the backbone has no such score" in next(figure for claim, _, figure in claims(metrics) if name in claim)


def test_a_score_that_broke_on_some_captions_is_not_taken_for_one_that_the_backbone_lacks():
    assert len(judge(changed(*SCORERS, "cosine", to=BROKEN))) == 1
    lacking = BROKEN | {"scored": {"captions": 0, "of": 300}}
    assert judge(changed(*SCORERS, "cosine", to=lacking)) == []


def test_a_model_without_any_label_free_score_is_refused_for_there_is_nothing_it_is_better_than():
    metrics = good()
    for name in ("cosine", "itm", "label_free"):
        metrics["evidence"]["scorers"][name] = {"preference_accuracy": NOTHING, "reward_minus_this": NOTHING}
    assert len(judge(metrics)) == 3


def test_a_few_images_that_are_all_right_pass_no_gate_though_their_intervals_do():
    """Three images out of three: every draw of them is the same, and one model in eight does it by chance."""
    right = bootstrap_mean(np.ones(6), np.array([0, 0, 1, 1, 2, 2]), seed=7).as_dict()
    assert right["low"] == right["high"] == 1.0
    metrics = {**changed("preference_accuracy", to=right), "test_images": 3}
    (reason,) = judge(metrics)
    assert "Only 3 held-out images" in reason
    assert judge(metrics, Gate(min_images=0)) == [], "the planted bug: intervals alone"
    against = {"model_version": "ab" * 32, "images": 3, "gain": right}
    (reason,) = judge(good(), against=against)
    assert "Only 3 images held out for the promoted model too" in reason


def test_figures_of_a_release_without_evidence_are_refused_by_name():
    found = judge(changed("evidence"))
    assert [sum(name in why for why in found) for name in BASELINES] == [1] * len(BASELINES)
    assert [sum(name in why for why in found) for name in SHORTCUTS] == [1] * len(SHORTCUTS)
    assert any("calibration" in why for why in found)


def test_without_any_figure_every_claim_but_the_alarm_is_refused():
    found = claims({})
    assert [claim for claim, holds, _ in found if holds] == ["tells captions apart"]


def test_a_model_that_was_promoted_before_must_be_beaten_beyond_the_interval():
    other = {"model_version": "ab" * 32, "images": 100}
    assert judge(good(), against={**other, "gain": estimate(0.001)}) == []
    for gain in (estimate(0.0), estimate(-0.2), NOTHING, None):
        (reason,) = judge(good(), against={**other, "gain": gain})
        assert "the promoted model abababababab" in reason


def test_the_gate_can_be_moved():
    assert judge(changed("cross_image_auc", to=estimate(0.65)), Gate(min_cross_image_auc=0.7))
    close = changed(*SCORERS, "cosine", "reward_minus_this", to=estimate(-0.08))
    assert judge(close)
    assert judge(close, Gate(min_gain=-0.1)) == []
    assert judge(changed("evidence", "calibration", "ece", to=estimate(0.2)), Gate(max_ece=0.3)) == []


def test_a_bound_that_every_figure_meets_asks_for_nothing():
    metrics = changed("evidence", "scorers")
    del metrics["evidence"]["calibration"]
    assert judge(metrics, Gate(min_gain=-1, max_ece=1), {"gain": NOTHING}) == []


@pytest.mark.parametrize("name", ["low", "value"])
def test_the_planted_bug_of_comparing_values_instead_of_intervals_would_pass_a_model_by_luck(name):
    """A gain of 5 points with an interval from -1 point: its value is above the bound, its lower end is not."""
    metrics = changed(*SCORERS, "cosine", "reward_minus_this", to=estimate(-0.01, half=0.06))
    figure = metrics["evidence"]["scorers"]["cosine"]["reward_minus_this"][name]
    assert (figure > Gate().min_gain) == (name == "value")
    assert len(judge(metrics)) == 1


def test_a_check_that_is_only_told_does_not_refuse_and_still_says_that_it_failed():
    failed = {"passed": False, "decides": False, "figure": estimate(0.45), "least": 0.5, "meaning": "in order"}
    metrics = changed("evidence", "shortcuts", "shuffled_words", to=failed)
    assert len(judge(metrics)) == 1, "a model's own figures do not say which of them decide"
    gate = Gate(told=("shuffled_words",))
    assert judge(metrics, gate) == []
    assert any("shuffled_words (told" in claim and "failed: 0.500" in why for claim, _, why in claims(metrics, gate))
