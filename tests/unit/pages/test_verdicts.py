"""The report's sentences say what the intervals say."""

from compalign_dagster.pages.evaluation import eval_page, verdict
from tests.unit.pages import builders


def test_clear_lead_is_called_one():
    text = verdict(builders.report())
    assert "above chance" in text
    assert "60.0 %" in text
    assert "the reward is higher (the intervals do not overlap)" in text
    assert "random subset of the same size: higher (the intervals do not overlap) in both directions" in text


def test_overlap_is_called_an_overlap():
    text = verdict(builders.report(reward=0.61, reward_r1=0.11))
    assert "the reward is not told apart (the intervals overlap)" in text
    assert "same size: not told apart (the intervals overlap) in both directions" in text
    assert "higher" not in text


def test_loss_is_called_a_loss():
    text = verdict(builders.report(cosine=0.8, reward_r1=0.1, random_r1=0.2))
    assert "the reward is lower (the intervals do not overlap)" in text
    assert "same size: lower (the intervals do not overlap)" in text


def test_interval_of_the_difference_decides_where_there_is_one():
    report = builders.report(reward=0.61, reward_r1=0.11)
    report["agreement"]["cosine"]["reward_minus_this"] = builders.estimate(0.01, 0.005)
    ahead, level = {"r1": builders.estimate(0.01, 0.005)}, {"r1": builders.estimate(0.01)}
    report["downstream"]["minus"] = {"random": {"image_to_text": ahead, "text_to_image": level}}
    text = verdict(report)
    assert "the reward is higher (the interval of the difference excludes 0)" in text
    assert "higher (the interval of the difference excludes 0) from image to text" in text
    assert "not told apart (the interval of the difference includes 0) from text to image" in text
    assert "+0.5 to +1.5" in eval_page(report).decode()


def test_chance_is_called_chance():
    assert "not told apart from chance" in verdict(builders.report(reward=0.51))
    assert "wrong way round" in verdict(builders.report(reward=0.3))


def test_unmeasured_figures_are_said_to_be_unmeasured():
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    empty = {"agreement": {"reward": {"preference_accuracy": nothing}}}
    assert "not measured" in verdict(empty)
    assert "not measured" in eval_page(empty).decode()
    assert eval_page({})
