"""docs/operating.md names settings, jobs, pages and messages that exist."""

import re

import pytest

from compalign_dagster.cli.doctor import examine
from compalign_dagster.settings import PREFIX, Settings, load
from sensors.jobs import JOBS
from tests.conftest import ROOT
from tests.support.fault_proxy import without

PAGE = (ROOT / "docs" / "operating.md").read_text()
_JOBS = ("land_batch", "index_batch", "learn_reward", "promote_model", "score_batch", "refilter", "evaluate",
         "replay_quarantine")  # fmt: skip


def test_every_setting_on_the_page_is_one():
    named = set(re.findall(rf"{PREFIX}[A-Z_]+", PAGE))
    assert len(named) > 10
    assert named <= {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", _JOBS)
def test_every_job_on_the_page_is_one(name):
    assert f"`{name}`" in PAGE
    assert name in {job.name for job in JOBS}


def test_every_linked_page_exists():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).is_file(), link


@pytest.mark.system
def test_doctor_says_of_a_server_without_conditional_writes_what_the_page_says(s3, faults, tmp_path, monkeypatch):
    for name, value in s3.env(faults.endpoint).items():
        monkeypatch.setenv(name, value)
    faults.inject("put_new", without("if-none-match"), first=None)
    places = {name: f"{s3.url}/{name}" for name in ("store", "landing", "labels", "evaluation")}
    findings = {finding.name: finding for finding in examine(load(home=tmp_path, **places))}
    said = f"MEND  store: {findings['store'].found}\n      {findings['store'].remedy}\n"
    assert said.replace(s3.url, "s3://crawl") in PAGE
