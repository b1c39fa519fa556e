"""A plan for each budget of a policy: on its own pairs, for the share that is really kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compalign_dagster import artifacts, parquet
from compalign_dagster.crawl.batches import ShardStamp
from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.live import IndexedShard
from compalign_dagster.scoring.cascade import Plan, plan, rejects, together
from compalign_dagster.scoring.planning import (
    SAMPLE,
    Budget,
    budgets_of,
    by_budget,
    draw,
    plan_budgets,
    plan_crawl,
    report_on,
    scored,
)
from compalign_dagster.scoring.sampling import Sample, Source
from compalign_dagster.statistics import Estimate
from compalign_dagster.store import LocalStore
from tests.support.tiny_reward import crawl_shard


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two shards of `web`, one of `cc12m`."""
    folder = tmp_path_factory.mktemp("crawl")
    found = {}
    for name, count in (("web/0.tar", 40), ("web/1.tar", 30), ("cc12m/0.tar", 12)):
        pairs = parquet.write(
            index_shard(crawl_shard(folder / "landing", count, name)).pairs, folder / f"{name}.parquet"
        )
        found[name] = Source(name, pairs)
    return found


def two_budgets(sources) -> dict[str, Budget]:
    web = [source for name, source in sources.items() if name.startswith("web")]
    return {"*": Budget(web, 0.3), "cc12m": Budget([sources["cc12m/0.tar"]], 0.9)}


def test_each_budget_is_drawn_for_itself_and_a_small_one_whole(sources):
    sample, names = draw(two_budgets(sources), 20, seed=3)
    corpora = sample.pairs["corpus"].to_pylist()
    assert [names.count(name) for name in ("*", "cc12m")] == [20, 12]
    assert {(name, corpus) for name, corpus in zip(names, corpora, strict=True)} == {("*", "web"), ("cc12m", "cc12m")}
    again, _ = draw(two_budgets(sources), 20, seed=3)
    assert again.pairs.equals(sample.pairs)
    places = sample.pairs.select(["shard", "key", "caption_index"]).to_pylist()
    assert len({tuple(place.values()) for place in places}) == 32


def table_of(sources, budgets, values):
    """A sample table with as many rows of each budget as `values` has, whatever pairs they are."""
    first = sources["web/0.tar"]
    pairs, names = parquet.read(first.pairs), [name for name, (cheap, _) in values.items() for _ in cheap]
    many = pairs.take(np.zeros(len(names), np.int64))
    cheap, reward = (np.concatenate([values[name][at] for name in values]) for at in (0, 1))
    nothing = np.zeros(len(names))
    return scored(Sample(many, nothing, nothing, nothing, len(names), 1), names, cheap, reward)


def crawl(count: int, noise: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    reward = generator.standard_normal(count)
    return reward + noise * generator.standard_normal(count), reward


def test_each_budget_has_the_plan_of_its_own_pairs_and_fraction(sources):
    budgets, values = two_budgets(sources), {"*": crawl(2000, 0.2), "cc12m": crawl(1500, 0.2, seed=2)}
    table = table_of(sources, budgets, values)
    assert table.schema.equals(SAMPLE)
    found = plan_budgets(table, budgets)
    assert found == {name: plan(*values[name], budgets[name].fraction) for name in budgets}
    assert found["cc12m"].reject_below < found["*"].reject_below, "who keeps more turns down less"


def test_pairs_without_a_reward_take_no_part_and_pairs_without_a_cheap_score_are_not_turned_down(sources):
    budgets = {"*": Budget([], 0.3)}
    cheap, reward = crawl(2000, 0.1)
    holes = np.arange(2000) % 10 == 0
    one = plan_budgets(table_of(sources, budgets, {"*": (cheap, np.where(holes, np.nan, reward))}), budgets)["*"]
    assert one == plan(cheap[~holes], reward[~holes], 0.3)
    other = plan_budgets(table_of(sources, budgets, {"*": (np.where(holes, np.nan, cheap), reward)}), budgets)["*"]
    assert other.passes > one.passes


def wrong_under_rules(made: Plan, values, ruled: np.ndarray, fraction: float) -> float:
    """Share of decisions that a plan changes where some pairs are dropped by a rule before the best are kept."""
    cheap, reward = values
    count = round(fraction * len(reward))

    def kept(eligible: np.ndarray) -> np.ndarray:
        order = np.argsort(-np.where(eligible, reward, -np.inf))[:count]
        found = np.zeros(len(reward), bool)
        found[order] = True
        return found & eligible

    return float((kept(~ruled) != kept(~ruled & ~rejects(cheap, made.reject_below))).mean())


def test_the_planted_bug_of_planning_for_the_policy_although_its_rules_move_the_cut_down(sources):
    values, fraction = crawl(40_000, 0.3), 0.3
    ruled = np.random.default_rng(5).random(40_000) < 0.5  # half of the pairs are of another language
    cut = float(np.sort(values[1][~ruled])[-round(fraction * 40_000)])
    sampled = tuple(column[:3000] for column in values)
    blind = Budget([], fraction)
    table = table_of(sources, {"*": blind}, {"*": sampled})
    by_policy = plan_budgets(table, {"*": blind})["*"]
    assert wrong_under_rules(by_policy, values, ruled, fraction) > 0.05
    by_cut = plan_budgets(table, {"*": replace(blind, cut=cut)})["*"]
    assert by_cut.fraction == pytest.approx(0.6, abs=0.03)
    assert wrong_under_rules(by_cut, values, ruled, fraction) <= 0.01
    assert by_cut.reject_below is not None


@pytest.mark.parametrize(("cut", "fraction"), [(-np.inf, 1.0), (np.inf, 0.3), (None, 0.3)])
def test_where_all_are_kept_nothing_is_turned_down_and_where_none_are_the_policy_counts(sources, cut, fraction):
    budgets = {"*": Budget([], 0.3, cut)}
    made = plan_budgets(table_of(sources, budgets, {"*": crawl(2000, 0.1)}), budgets)["*"]
    assert made.fraction == fraction
    assert (made.reject_below is None) is (fraction == 1.0)


def test_the_crawl_as_a_whole_is_the_mean_of_its_budgets_by_their_pairs():
    def made(passes: float, low: float, value: float, high: float) -> Plan:
        return Plan(0.0, passes, Estimate(value, low, high, 100), 0.3, 0.01, "")

    plans = {"*": made(0.5, 0.0, 0.002, 0.01), "cc12m": made(1.0, 0.0, 0.0, 0.0)}
    passes, wrong = together(plans, {"*": 300, "cc12m": 100})
    assert passes == pytest.approx(0.625)
    assert (wrong.low, wrong.value, wrong.high, wrong.n) == pytest.approx((0.0, 0.0015, 0.0075, 200))


class Indexed(LocalStore):
    """A store in which the keys of pair indexes are the paths of their files."""

    def fetch(self, key):
        return Path(key)


def own_budget(corpus: str) -> str:
    return corpus if corpus == "cc12m" else "*"


def test_a_crawl_is_planned_budget_by_budget_and_the_report_has_a_threshold_for_each_corpus(sources, tmp_path):
    sizes, store = {"web/0.tar": 40, "web/1.tar": 30, "cc12m/0.tar": 12}, Indexed(tmp_path)
    shards = [
        IndexedShard(name, "batch-00001", str(sources[name].pairs), "v", size, ShardStamp(name, 1, "1"))
        for name, size in sizes.items()
    ]
    budgets = budgets_of(store, shards, own_budget, lambda name, n: n // 2, {"*": 60.0})
    assert {name: len(budget.sources) for name, budget in budgets.items()} == {"*": 2, "cc12m": 1}
    assert [(budget.fraction, budget.cut) for budget in budgets.values()] == [(0.5, 60.0), (0.5, None)]

    def alike(seconds):
        return lambda sample: (np.arange(len(sample.pairs), dtype=np.float64), seconds, {})

    table, plans, time = plan_crawl(budgets, alike(1.0), alike(4.0), size=80, seed=1, bound=0.5)
    assert (table.num_rows, time) == (82, 0.25)
    assert plans == plan_budgets(table, budgets, bound=0.5)
    cheap, model = (
        artifacts.publish(store, name, name, {}, code_version=1, inputs=[], config={}, facts={"model_version": name})
        for name in ("cheap", "model")
    )
    report = report_on(plans, time, by_budget(shards, own_budget), cheap, model)
    assert report["reject_below"] == {"web": plans["*"].reject_below}, "the other one's pairs are too few to promise"
    assert report["cheap"] == cheap.manifest_key
    assert (report["cheap_version"], report["model_version"], report["pairs"]) == ("cheap", "model", 82)
    assert report["passes"] == pytest.approx((70 * plans["*"].passes + 12) / 82)
    assert report["time"] == pytest.approx(report["passes"] + 0.25)
