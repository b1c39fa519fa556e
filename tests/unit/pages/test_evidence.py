import re

from compalign_dagster.pages.evidence import NOT_MEASURED, evidence_view
from compalign_dagster.pages.reward import reward_page
from tests.unit.pages.builders import estimate, evidence

HOSTILE = "<script>alert(1)</script>"


def page(found: dict | None) -> str:
    metrics = {"preference_accuracy": estimate(0.7)} | ({"evidence": found} if found else {})
    return reward_page(metrics, {}, []).decode()


def rows(html: str, caption: str) -> list[str]:
    table = html.split(caption)[1].split("</table>")[0]
    return [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip() for row in table.split("<tr>")[2:]]


def test_a_model_with_evidence_shows_every_scorer_with_its_interval_and_the_lead_of_the_reward():
    told = rows(page(evidence()), "Held-out figures in percent")
    assert [row.split(" 70")[0] for row in told] == ["reward", "image-text cosine"]  # what was not measured is left out
    assert "+8.0" in told[1]
    assert "+5.0" in told[1]


def test_a_check_that_failed_and_one_that_could_not_be_measured_say_so():
    told = rows(page(evidence()), "each share must lie above chance")
    assert "✓ passed" in told[0]
    assert "✗ not measured" in told[1]


def test_parts_of_the_judgements_stand_beside_the_best_other_scorer():
    (told,) = rows(page(evidence()), "The reward beside the best other scorer")
    assert told.startswith("caption source plain 61.0")
    assert "52.0" in told


def test_the_reliability_plot_says_in_words_what_it_shows():
    view = evidence_view({"evidence": evidence()})
    assert "20 % said, 25 % seen" in view.reliability.alt
    assert view.reliability.svg in page(evidence())


def test_a_model_without_evidence_or_calibration_has_a_page_still():
    assert "Beside every score" not in page(None)
    assert "no ratings were held out" in page(evidence() | {"calibration": {"ece": NOT_MEASURED, "bins": []}})
    assert evidence_view({"evidence": {}}).scorers == []


def test_names_from_outside_are_escaped():
    html = page(evidence(HOSTILE))
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html
