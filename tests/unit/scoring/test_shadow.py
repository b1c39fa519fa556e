"""A shadow run: the sample stands for the crawl, and the figures are those of the crawl within their intervals."""

import numpy as np
import pyarrow as pa
import pytest

from compalign_dagster import parquet
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.pages.shadow import shadow_page
from compalign_dagster.scoring.sampling import Sample, Source, draw_sample
from compalign_dagster.scoring.shadow import (
    ENTERS,
    LEAVES,
    REST,
    SAMPLE,
    compare,
    cost_of_rescoring,
    galleries,
    kept,
    score_sample,
    summary,
)
from compalign_dagster.scoring.tables import SCORES
from compalign_dagster.selection.policy import keep_count
from compalign_dagster.store import LocalStore
from tests.support.colours import ColourReward
from tests.support.tiny_reward import crawl_shard


def pairs_table(shard: str, count: int) -> pa.Table:
    blank = {field.name: 0 if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) else ""
             for field in PAIRS}  # fmt: skip
    rows = [
        {**blank, "pair_id": f"{shard}-{at}", "shard": shard, "key": f"{at:05d}", "caption_index": at % 3,
         "caption": f"caption {at}", "corpus": shard.split("/")[0], "url": None}
        for at in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, PAIRS)


def source(folder, shard: str, count: int, rewards: np.ndarray | None, *, lost: int = 0) -> Source:
    """A shard's files; the first `lost` pairs were quarantined by scoring."""
    pairs = pairs_table(shard, count)
    path = parquet.write(pairs, folder / shard / "pairs.parquet")
    if rewards is None:
        return Source(shard, path)
    rows = [
        {**{name: row[name] for name in SCORES.names if name in row}, "reward": float(reward), "model_version": "m"}
        for row, reward in zip(pairs.to_pylist()[lost:], rewards[lost:], strict=True)
    ]
    return Source(shard, path, parquet.write(pa.Table.from_pylist(rows, SCORES), folder / shard / "scores.parquet"))


@pytest.fixture
def crawl(tmp_path):
    """Two corpora of 3,000 and 1,000 pairs in three shards."""
    rng = np.random.default_rng(0)
    return [
        source(tmp_path, "web/0.tar", 2000, rng.normal(0, 1, 2000)),
        source(tmp_path, "web/1.tar", 1000, rng.normal(0, 1, 1000)),
        source(tmp_path, "shop/0.tar", 1000, rng.normal(5, 1, 1000)),
    ]


def by_corpus(sample: Sample) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in sample.pairs["corpus"].value_counts().to_pylist()}


def test_each_corpus_and_each_decile_has_its_share_and_the_weights_add_up(crawl):
    sample = draw_sample(crawl, 400, seed=1)
    assert sample.population == 4000
    assert sample.strata == 20
    assert by_corpus(sample) == {"web": 300, "shop": 100}
    corpus = np.array(sample.pairs["corpus"].to_pylist())
    assert np.bincount(sample.decile[corpus == "web"]).tolist() == [30] * 10
    assert np.bincount(sample.decile[corpus == "shop"]).tolist() == [10] * 10
    assert sample.weight.sum() == pytest.approx(4000)
    for name in ("web", "shop"):
        mean = [sample.promoted[(corpus == name) & (sample.decile == at)].mean() for at in range(10)]
        assert mean == sorted(mean), "deciles are of the corpus, lowest first"


def test_the_rewards_of_the_sample_are_those_of_its_pairs(crawl):
    sample = draw_sample(crawl, 200, seed=2)
    known = {}
    for item in crawl:
        for row in parquet.read(item.scores).to_pylist():
            known[row["pair_id"]] = row["reward"]
    assert [known[name] for name in sample.pairs["pair_id"].to_pylist()] == sample.promoted.tolist()


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_shards(crawl):
    def ids(sources, seed):
        return draw_sample(sources, 50, seed=seed).pairs["pair_id"].to_pylist()

    assert ids(crawl, 1) == ids(crawl[::-1], 1)
    assert ids(crawl, 1) != ids(crawl, 2)


def test_a_rare_corpus_is_in_the_sample(tmp_path):
    rng = np.random.default_rng(0)
    sources = [source(tmp_path, f"{name}/0.tar", size, rng.normal(size=size)) for name, size in
               (("web", 5000), ("rare", 3))]  # fmt: skip
    sample = draw_sample(sources, 100, seed=1)
    assert by_corpus(sample)["rare"] == 3
    assert sample.weight.sum() == pytest.approx(5003)


@pytest.mark.parametrize("size", [1, 7, 19, 20, 21, 399, 4000, 9000])
def test_the_sample_has_the_size_that_was_asked_for_or_the_whole_crawl(crawl, size):
    sample = draw_sample(crawl, size, seed=3)
    assert len(sample.pairs) == min(size, 4000)
    assert len(set(sample.pairs["pair_id"].to_pylist())) == len(sample.pairs)


def test_pairs_that_the_promoted_model_could_not_score_are_not_drawn(tmp_path):
    item = source(tmp_path, "web/0.tar", 30, np.arange(30.0), lost=10)
    assert min(draw_sample([item], 30, seed=1).promoted) == 10


def test_without_scores_the_sample_is_drawn_from_the_index(tmp_path):
    sources = [source(tmp_path, "web/0.tar", 90, None), source(tmp_path, "shop/0.tar", 10, None)]
    sample = draw_sample(sources, 50, seed=1)
    assert by_corpus(sample) == {"web": 45, "shop": 5}
    assert np.isnan(sample.promoted).all()
    assert (sample.decile == -1).all()
    assert draw_sample([], 10, seed=1).population == 0
    assert len(draw_sample([source(tmp_path, "none/0.tar", 0, None)], 10, seed=1).pairs) == 0


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.305, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 7, 10, 200])
def test_with_equal_weights_exactly_the_policys_count_is_kept(fraction, count):
    reward = np.random.default_rng(4).normal(size=count)
    found = kept(reward, np.ones(count), np.full(count, REST, object), {REST: fraction})
    assert found.sum() == keep_count(str(fraction), count)
    assert not found.any() or reward[found].min() >= reward[~found].max(initial=-np.inf)


def test_budgets_are_cut_by_themselves():
    reward = np.array([9.0, 8.0, 7.0, 6.0, 1.0, 2.0])
    budget = np.array([REST] * 4 + ["shop"] * 2, object)
    assert kept(reward, np.ones(6), budget, {REST: 0.25, "shop": 0.5}).tolist() == [True, *[False] * 4, True]


def whole(crawl, size=4000):
    return draw_sample(crawl, size, seed=1)


def test_the_same_rewards_change_nothing(crawl):
    sample = whole(crawl, 500)
    table, facts = compare(sample, sample.promoted * 3 + 1, sample.promoted, {REST: 0.3}, seed=1)
    assert facts["spearman"]["value"] == pytest.approx(1)
    assert facts["kendall_tau_b"]["value"] == pytest.approx(1)
    assert facts["kept_overlap"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 500}
    assert facts[ENTERS] == facts[LEAVES] == {"pairs": 0, "of_the_crawl": 0}
    assert table.schema.equals(SAMPLE)


def test_the_overlap_of_a_sample_is_that_of_the_crawl_within_its_interval(crawl):
    """Rewards of the whole crawl are known here, so the estimate can be held against the truth."""
    full = whole(crawl)
    noise = dict(zip(full.pairs["pair_id"].to_pylist(), np.random.default_rng(5).normal(0, 1, 4000), strict=True))

    def overlap(sample):
        candidate = sample.promoted + np.array([noise[name] for name in sample.pairs["pair_id"].to_pylist()])
        return compare(sample, candidate, sample.promoted, {REST: 0.3}, seed=1)[1]

    truth, found = overlap(full), overlap(whole(crawl, 800))
    for name in ("kept_overlap", "spearman", "kendall_tau_b"):
        assert found[name]["low"] < truth[name]["value"] < found[name]["high"]
        assert found[name]["high"] - found[name]["low"] < 0.2
    assert found[ENTERS]["of_the_crawl"] == pytest.approx(truth[ENTERS]["of_the_crawl"], rel=0.25)


def test_the_planted_bug_of_a_sample_of_the_best_pairs_would_miss_the_truth(crawl):
    full = whole(crawl)
    noise = np.random.default_rng(5).normal(0, 1, 4000)
    truth = compare(full, full.promoted + noise, full.promoted, {REST: 0.3}, seed=1)[1]["spearman"]["value"]
    best = np.argsort(-full.promoted)[:800]
    biased = Sample(full.pairs.take(best), np.full(800, 5.0), full.decile[best], full.promoted[best], 4000, 20)
    found = compare(biased, (full.promoted + noise)[best], full.promoted[best], {REST: 0.3}, seed=1)[1]["spearman"]
    assert not found["low"] < truth < found["high"]


def test_pairs_that_one_model_could_not_score_are_in_no_figure(crawl):
    sample = whole(crawl, 100)
    candidate = sample.promoted.copy()
    candidate[:10] = np.nan
    table, facts = compare(sample, candidate, sample.promoted, {REST: 0.3}, seed=1)
    assert facts["compared"] == 90
    assert table["reward_candidate"].null_count == table["change"].null_count == 10


def test_without_a_promoted_model_the_candidate_stands_alone(crawl):
    sample = whole(crawl, 100)
    table, facts = compare(sample, sample.promoted, None, {REST: 0.3}, seed=1)
    assert "spearman" not in facts and "promoted_rewards" not in facts
    assert table["reward_promoted"].null_count == table["change"].null_count == 100
    shown = galleries(table, 5)
    assert set(shown) == {"best", "worst"}
    assert shown["best"][0]["reward_candidate"] == max(table["reward_candidate"].to_pylist())
    report = {**facts, "candidate": "c" * 64, "promoted": None, "population": 4000, "sampled": 100, "strata": 20,
              "refused": {}, "device": "cpu", "policy": {}, "cost": cost_of_rescoring(0, 0.0, 0)}  # fmt: skip
    assert "no model is promoted yet" in " ".join(summary(report))
    assert b"No model is promoted yet" in shadow_page(report, {})


def test_the_galleries_show_those_whose_rank_changes_most(crawl):
    sample = whole(crawl, 400)
    candidate = sample.promoted.copy()
    order = np.argsort(sample.promoted)
    candidate[order[0]], candidate[order[-1]] = 100.0, -100.0
    table, facts = compare(sample, candidate, sample.promoted, {REST: 0.3}, seed=1)
    shown = galleries(table, 3)
    ids = sample.pairs["pair_id"].to_pylist()
    assert [row["pair_id"] for row in shown[ENTERS]] == [ids[order[0]]]
    assert [row["pair_id"] for row in shown[LEAVES]] == [ids[order[-1]]]
    assert facts[ENTERS] == {"pairs": 1, "of_the_crawl": 10}


def test_scoring_reads_only_the_sampled_pairs_and_a_shard_that_is_gone_costs_its_pairs(tmp_path):
    from compalign_dagster.crawl.index import index_shard
    from compalign_dagster.crawl.shards import Shard

    sources, shards = [], {}
    for name in ("web/0.tar", "web/1.tar"):
        shard = crawl_shard(tmp_path / "landing", 20, name)
        path = parquet.write(index_shard(shard).pairs, tmp_path / name / "pairs.parquet")
        sources.append(Source(name, path))
        shards[name] = shard
    sample = draw_sample(sources, 10, seed=1)
    model = ColourReward().eval()
    reward, seconds, refused = score_sample(model, "m", sample, shards)
    assert np.isfinite(reward).all() and seconds > 0 and refused == {}
    for text, value in zip(sample.pairs["caption"].to_pylist(), reward, strict=True):
        assert value >= 1, text
    shards["web/1.tar"] = Shard("web/1.tar", LocalStore(tmp_path / "landing"), "web/gone.tar")
    again, _, refused = score_sample(model, "m", sample, shards)
    gone = np.array(sample.pairs["shard"].to_pylist()) == "web/1.tar"
    assert np.isnan(again[gone]).all() and (again[~gone] == reward[~gone]).all()
    assert refused == {"shard_changed": int(gone.sum())}


def test_the_cost_is_pairs_times_the_measured_pace():
    assert cost_of_rescoring(1_000_000, 7.2, 2000) == {"pairs": 1_000_000, "seconds_per_pair": 0.0036, "hours": 1.0}
    assert cost_of_rescoring(10, 0.0, 0)["hours"] is None
