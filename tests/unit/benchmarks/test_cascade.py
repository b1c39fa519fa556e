"""The cascade's page shows one run, its time is arithmetic on that run, and samples are held against whole crawls."""

import json

import numpy as np
import pytest

from benchmarks.cascade import decisions, times
from benchmarks.cascade.__main__ import BOUND, HERE, full, page, ratios

RESULT = json.loads((HERE / "result.json").read_text())


def test_the_page_and_the_result_are_of_one_run():
    assert (HERE / "result.md").read_text() == page(RESULT)


def test_no_recorded_round_changed_more_decisions_than_its_bound_allows_in_one_of_twenty():
    for row in RESULT["runs"]:
        assert decisions.summary(row)["over"] <= 0.05, row["cheap"]


def test_a_cascade_that_rejects_nothing_costs_the_cheap_pass_on_top():
    cost = times.costs(RESULT["times"])
    by_name = {(name, share): value for name, share, value in ratios(cost)}
    cheap = (cost["clip-b32 image"] + cost["clip-b32 caption alone"]) / full(cost)
    assert by_name["clip-b32", 0.5] == pytest.approx(cheap + 0.5)


def test_the_cosine_of_the_same_network_cannot_save_more_than_the_text_pass():
    cost = times.costs(RESULT["times"])
    most = cost["blip-large caption with image"] / full(cost)
    assert all(value >= 1 - most for name, _, value in ratios(cost) if name.startswith("cosine"))


def test_one_round_counts_in_the_whole_crawl_what_a_sample_has_promised():
    generator = np.random.default_rng(1)
    reward = generator.standard_normal(10_000)
    row = decisions._one(reward + 0.2 * generator.standard_normal(10_000), reward, 0.1, BOUND, 3_000, seed=4)
    assert row["used"]
    assert 0.1 <= row["passes"] < 0.5
    assert row["wrong"] <= BOUND
    assert row["audit_passed"] is (row["audit_high"] <= BOUND)
