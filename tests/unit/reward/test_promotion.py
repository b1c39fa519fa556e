import pytest

from compalign_dagster.reward.promotion import Gate, claims, judge


def metrics(accuracy=0.6, across=0.8, **more):
    def estimate(low):
        return {"value": low + 0.05, "low": low, "high": low + 0.1, "n": 200}

    return {"preference_accuracy": estimate(accuracy), "cross_image_auc": estimate(across), **more}


def test_a_model_that_agrees_and_compares_across_images_passes():
    assert judge(metrics()) == []
    assert all(holds for _, holds, _ in claims(metrics()))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (metrics(accuracy=0.5), "preference_accuracy"),
        (metrics(across=0.6), "cross_image_auc"),
        ({"preference_accuracy": metrics()["preference_accuracy"]}, "No held-out cross_image_auc"),
        (metrics(validation_stuck_at_ln2=True), "ln 2"),
        (metrics(accuracy=float("nan")), "preference_accuracy"),
    ],
)
def test_a_model_is_refused_for_one_reason_that_names_the_figure(found, said):
    (reason,) = judge(found)
    assert said in reason
    assert sum(not holds for _, holds, _ in claims(found)) == 1


def test_figures_without_anything_to_measure_refuse():
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    assert len(judge({"preference_accuracy": nothing, "cross_image_auc": nothing})) == 2


def test_the_gate_can_be_moved():
    assert judge(metrics(across=0.65), Gate(min_cross_image_auc=0.7))
    assert not judge(metrics(across=0.65), Gate(min_cross_image_auc=0.6))
