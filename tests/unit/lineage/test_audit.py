import pytest

from compalign_dagster.lineage.audit import audit_facts
from compalign_dagster.pages.audit import audit_page
from compalign_dagster.selection import versions
from tests.unit.pages.test_pages import Outline

HOSTILE = "<script>alert(1)</script>\u202e"


@pytest.fixture(scope="module")
def facts(made):
    version = versions.resolve(made.store, "current")
    return audit_facts(version, version.artifact.work_key[:12])


def test_the_page_says_where_it_comes_from_what_was_dropped_and_who_judged(facts):
    text = Outline(audit_page(facts)).text
    said = ["batch-00002", "shop", "below cut", "a lower reward than the last kept pair", "ada", "v1"]
    said += ["judgements.jsonl", "a curator", "first is good enough", f"compalign verify {facts['version']}"]
    assert [wanted for wanted in said if wanted not in text] == []
    assert facts["pairs"] == facts["kept"] + facts["dropped"] + facts["quarantined"]
    assert sum(row["pairs"] for row in facts["reasons"]) == facts["dropped"]
    assert sum(row["kept"] for row in facts["batches"]) == facts["kept"]


def test_limits_are_told(facts):
    assert any("could not be scored" in limit for limit in facts["limits"])
    assert any("rights, consent or truth" in limit for limit in facts["limits"])


def test_a_trial_says_that_nobody_put_it_in_force(small):
    version = small.filter(keep_fraction="0.25", move=False)
    told = audit_facts(version, version.artifact.work_key[:12])
    assert any("trial" in limit for limit in told["limits"])


def test_hostile_names_are_text(facts):
    hostile = {
        **facts,
        "corpora": [{"corpus": HOSTILE, "pairs": 1, "kept": 1}],
        "adopted": [{"policy": 1, "decided": "", "by": HOSTILE, "why": HOSTILE}],
    }
    page = audit_page(hostile)
    assert b"<script" not in page
    assert "\u202e" not in page.decode()
    assert b"http:" not in page
    assert len(page) < 100_000
