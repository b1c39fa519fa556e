import logging
import math

import pytest
import torch

from compalign_dagster.reward.watch import Watch

LN2 = math.log(2)


def seen(watch, *entries):
    """Let it see (accuracy, preference loss); each weight is the number of its validation."""
    for step, (accuracy, loss) in enumerate(entries, start=len(watch.validations) + 1):
        entry = {"step": step, "accuracy": accuracy, "preference": loss, "total": loss}
        watch.see(entry, {"w": torch.tensor(float(step))})
    return watch


def test_the_best_validation_has_the_highest_accuracy_whatever_its_loss():
    watch = seen(Watch(), (0.6, 0.5), (0.8, 0.9), (0.7, 0.1))
    assert watch.best["step"] == 2
    assert float(watch.weights["w"]) == 2


def test_among_equal_accuracies_the_lower_loss_is_better_and_the_earlier_of_equals_stays():
    watch = seen(Watch(), (0.8, 0.5), (0.8, 0.4), (0.8, 0.4))
    assert watch.best["step"] == 2
    assert float(watch.weights["w"]) == 2


def test_without_comparisons_the_loss_decides():
    assert seen(Watch(), (None, 0.5), (None, 0.4), (None, 0.6)).best["step"] == 2


def test_patience_counts_validations_since_accuracy_last_rose():
    watch = seen(Watch(patience=2), (0.6, 0.5), (0.6, 0.4))
    assert not watch.stopped
    seen(watch, (0.7, 0.4), (0.7, 0.3))
    assert not watch.stopped
    seen(watch, (0.6, 0.2))
    assert watch.stopped


def test_no_patience_never_stops():
    assert not seen(Watch(), *[(0.5, 0.5)] * 50).stopped


def test_kept_weights_do_not_move_with_the_model():
    weight = torch.tensor(1.0)
    watch = Watch()
    watch.see({"step": 1, "accuracy": 0.5, "preference": 0.5, "total": 0.5}, {"w": weight})
    weight += 1
    assert float(watch.weights["w"]) == 1


def test_the_alarm_at_ln_2_comes_with_the_third_validation_in_a_row_and_once(caplog):
    watch = Watch()
    with caplog.at_level(logging.WARNING):
        seen(watch, (0.5, 0.5), (0.5, LN2), (0.5, LN2))
        assert not caplog.records and not watch.at_ln2
        seen(watch, (0.5, LN2))
        assert [record.getMessage() for record in caplog.records] == [
            "validation loss has stayed at ln 2 for 3 validations, to step 4: the model does not tell captions apart"
        ]
        seen(watch, (0.5, LN2))
    assert len(caplog.records) == 1 and watch.at_ln2
    assert not seen(watch, (0.6, 0.6)).at_ln2


@pytest.mark.parametrize("loss", [None, 0.69, 0.70])
def test_other_losses_raise_no_alarm(loss):
    watch = Watch()
    for step in (1, 2, 3):
        watch.see({"step": step, "accuracy": None, "preference": loss, "total": 1.0}, {})
    assert not watch.at_ln2
