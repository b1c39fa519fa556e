"""A shard scored by two models: who gets a reward, who does not, and that nobody is lost on the way."""

import shutil
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from compalign_dagster import artifacts, parquet
from compalign_dagster.crawl.index import index_shard
from compalign_dagster.errors import ConservationError
from compalign_dagster.scoring import where
from compalign_dagster.scoring.cascaded import CascadedScorer, drawn
from compalign_dagster.scoring.engine import Scorer, ScoringConfig
from compalign_dagster.scoring.in_force import Cascade, adopt, applied, current, turn_off
from compalign_dagster.scoring.tables import AUDITED, REJECTED
from compalign_dagster.scoring.where import Where, score_works
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import digest_bytes
from tests.support.scoring import BYTES, REFERENCE, prepare, works_of
from tests.support.scoring import scored as scored_works
from tests.support.tiny_reward import crawl_shard
from tests.unit.scoring.test_engine import Counting

CONFIG = ScoringConfig(device="cpu", threads=1)


@pytest.fixture
def shard(tmp_path):
    return crawl_shard(tmp_path, count=40)


@pytest.fixture
def pairs(shard):
    return index_shard(shard).pairs


def scorer(threshold: Mapping[str, float], audit: float = 0.25, *, nan_for=(), unscorable=()) -> CascadedScorer:
    """Both models reward alike, so that what is turned down is known."""
    cheap = Scorer(Counting(nan_for), "c" * 64, CONFIG)
    return CascadedScorer(
        cheap, Scorer(Counting(unscorable), "r" * 64, CONFIG), Cascade("m", "c" * 64, threshold, audit)
    )


def scored(made: CascadedScorer, shard, pairs, **options):
    (found,) = made.score_all([(shard, pairs)], **options)
    return found


def whole(shard, pairs):
    return Scorer(Counting(), "r" * 64, CONFIG).score(shard, pairs).scores


def middle(shard, pairs) -> float:
    return float(np.median(whole(shard, pairs)["reward"].to_numpy()))


def ids(table: pa.Table) -> set[str]:
    return set(table["pair_id"].to_pylist())


def test_pairs_at_or_above_the_threshold_get_the_reward_and_the_others_their_cheap_score(shard, pairs):
    everything, cut = whole(shard, pairs), middle(shard, pairs)
    found = scored(scorer({"web": cut}, audit=0.0), shard, pairs)
    assert found.scores.equals(everything.filter(pc.greater_equal(everything["reward"], cut)))
    below = everything.filter(pc.less(everything["reward"], cut))
    assert len(below) > 5
    assert found.rejected.schema.equals(REJECTED)
    assert found.rejected["pair_id"].equals(below["pair_id"])
    assert found.rejected["cheap"].equals(below["reward"])
    assert found.audited.schema.equals(AUDITED)
    assert len(found.audited) == len(found.quarantine) == 0


def test_audited_rejects_are_scored_like_any_other_pair_and_named(shard, pairs):
    everything, cut = whole(shard, pairs), middle(shard, pairs)
    found = scored(scorer({"web": cut}, audit=0.5), shard, pairs)
    below = everything.filter(pc.less(everything["reward"], cut))
    expected = below.filter(pa.array(drawn(below["pair_id"].to_pylist(), 0.5)))
    assert 0 < len(expected) < len(below)
    assert found.audited["pair_id"].equals(expected["pair_id"])
    assert found.audited["reward"].equals(expected["reward"])
    assert found.audited["cheap"].equals(expected["reward"])
    assert ids(found.audited) <= ids(found.scores)
    assert not ids(found.scores) & ids(found.rejected)
    assert len(found.scores) + len(found.rejected) == len(pairs)


def test_a_corpus_that_was_not_planned_for_is_scored_whole(shard, pairs):
    made = scorer({"cc12m": 1e9})
    found = scored(made, shard, pairs)
    assert found.scores.equals(whole(shard, pairs))
    assert len(found.rejected) == len(found.audited) == 0
    assert made._cheap.model.encoded == [], "the cheap model has nothing to say there"


def test_a_pair_without_a_cheap_score_is_never_turned_down(shard, pairs):
    captions = set(pairs["caption"].to_pylist())
    found = scored(scorer({"web": 1e9}, audit=0.0, nan_for=captions), shard, pairs)
    assert found.scores.equals(whole(shard, pairs))


def test_a_shard_of_which_nothing_is_left_has_no_scores(shard, pairs):
    found = scored(scorer({"web": 1e9}, audit=0.0), shard, pairs)
    assert (len(found.scores), len(found.rejected)) == (0, len(pairs))


def test_what_the_reward_cannot_score_is_quarantined_an_audited_pair_too(shard, pairs):
    captions = set(pairs["caption"].to_pylist())
    found = scored(scorer({"web": 1e9}, audit=0.5, unscorable=captions), shard, pairs)
    assert len(found.audited) == len(found.scores) == 0
    assert set(found.quarantine["reason"].to_pylist()) == {"reward_not_finite"}
    assert len(found.rejected) + len(found.quarantine) == len(pairs)


def test_several_shards_come_in_their_order_and_progress_ends_at_all_pairs(tmp_path):
    shards = [crawl_shard(tmp_path, 8 + at, f"{name}/0.tar") for at, name in enumerate(("web", "other", "web2"))]
    jobs = [(shard, index_shard(shard).pairs) for shard in shards]
    seen = []
    found = scorer({"web": 100.0, "web2": 120.0}).score_all(jobs, progress=lambda *words: seen.append(words))
    for (shard, pairs), one in zip(jobs, found, strict=True):
        steps = [done for done, _, what in seen if what == f"pairs of {shard.name}"]
        assert steps == sorted(steps)
        assert {*one.scores["shard"].to_pylist(), *one.rejected["shard"].to_pylist()} == {shard.name}
        assert len(one.scores) + len(one.rejected) == len(pairs)
        assert seen[-1] == (len(pairs), len(pairs), f"pairs of {shard.name}")
        assert sum(one.stages.values()) == pytest.approx(1)


def lose_one(made: CascadedScorer, monkeypatch) -> None:
    score = made._scorer.score
    monkeypatch.setattr(made._scorer, "score", lambda shard, pairs, **more: score(shard, pairs.slice(1), **more))


def test_the_planted_bug_a_pair_that_is_lost_between_the_models_is_an_error(shard, pairs, monkeypatch):
    made = scorer({"web": middle(shard, pairs)})
    lose_one(made, monkeypatch)
    with pytest.raises(ConservationError, match=r"web/00000\.tar: expected 40 pairs"):
        scored(made, shard, pairs)


def test_the_audit_is_drawn_by_content_alone_and_a_larger_one_holds_the_smaller():
    names = [digest_bytes(str(at).encode())[:32] for at in range(20_000)]
    few, more = drawn(names, 0.01), drawn(names, 0.1)
    assert few.mean() == pytest.approx(0.01, abs=0.003)
    assert more.mean() == pytest.approx(0.1, abs=0.01)
    assert not (few & ~more).any()
    order = np.random.default_rng(1).permutation(len(names))
    assert (drawn([names[at] for at in order], 0.01) == few[order]).all()
    assert not drawn(names, 0.0).any()
    assert drawn(names, 1.0).all()


# What workers do: the same work everywhere, published once.


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Indexed shards of two corpora, a promoted model, and a cheap one that rewards alike."""
    home = tmp_path_factory.mktemp("cascade") / "home"
    crawl_shard(home / "landing", 12, "other/00000.tar")
    prepare(home, shards=2, pairs=12)
    store = LocalStore(home / "store")
    promoted = artifacts.load(store, works_of(home)[0].model)
    files = {name: promoted.fetch(name) for name in promoted.names()}
    artifacts.publish(
        store, "cheap_model", "c" * 32, files, code_version=1, inputs=[], config={}, facts=dict(promoted.facts)
    )
    return home


@pytest.fixture(scope="module")
def cascade(home, tmp_path_factory):
    """Turns down about half of the pairs, whose rewards are found out in another home."""
    found = scored_works(shutil.copytree(home, tmp_path_factory.mktemp("whole") / "home"))
    rewards = np.concatenate([parquet.read(found[name].fetch("scores.parquet"))["reward"] for name in WEB])
    return Cascade("cheap_model/" + "c" * 32 + "/manifest.json", "c", {"web": float(np.median(rewards))}, 0.3)


WEB = ("web/00000.tar", "web/00001.tar")


def under(home, cascade: Cascade):
    """The works of all shards, of which those of `WEB` have a threshold."""
    return works_of(home, {**BYTES, **cascade.as_config()})


def published(home, cascade: Cascade, where: Where | None = None):
    works = under(home, cascade)
    return {work.shard: artifact for work, artifact, _ in score_works(works, REFERENCE, where)}


def test_a_shard_is_published_with_what_was_turned_down_and_names_both_models(home, cascade):
    found = published(home, cascade)
    for artifact in [found[name] for name in WEB]:
        tables = {name: parquet.read(artifact.fetch(f"{name}.parquet")) for name in ("scores", "rejected", "audited")}
        assert {name: len(table) for name, table in tables.items()} == {
            name: artifact.facts["scored" if name == "scores" else name] for name in tables
        }
        assert artifact.facts["rejected"] > 0
        assert [source.kind for source in artifact.inputs] == ["raw_crawl_shards", "reward_model", "cheap_model"]
        artifact.verify()


def test_a_shard_that_was_scored_whole_keeps_its_rewards_under_a_cascade(home, cascade, tmp_path):
    fresh = shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("scored_shards_shards"))
    _, first, _ = works_of(fresh)
    ((_, whole, _),) = score_works([first], REFERENCE)
    one, other = score_works(under(fresh, cascade)[1:], REFERENCE)
    assert (one[1].manifest_key, one[2]) == (whole.manifest_key, True)
    assert one[1].facts["scored"] == one[0].pairs
    assert other[1].facts["rejected"] > 0
    assert other[1].work_key == other[0].key != other[0].whole_key


def test_a_shard_of_a_corpus_without_a_threshold_is_the_work_that_it_is_without_a_cascade(home, cascade):
    assert under(home, replace(cascade, reject_below={"cc12m": 1.0})) == works_of(home)
    assert [work.shard for work in under(home, cascade) if work.key != work.whole_key] == list(WEB)


def rejected_by_shard(home, cascade, folder):
    """What becomes of shards with and without a threshold that one worker is given together."""
    fresh = shutil.copytree(home, folder / "home", ignore=shutil.ignore_patterns("scored_shards_shards"))
    return {shard: artifact.facts.get("rejected") for shard, artifact in published(fresh, cascade).items()}


def test_one_worker_scores_shards_with_and_without_a_threshold(home, cascade, tmp_path):
    found = rejected_by_shard(home, cascade, tmp_path)
    assert found["other/00000.tar"] is None, "published as it would be without a cascade"
    assert all(found[name] > 0 for name in WEB)


def test_the_planted_bug_of_loading_what_the_first_work_needs_scores_the_others_whole(
    home, cascade, tmp_path, monkeypatch
):
    monkeypatch.setattr(where, "needs_most", lambda works: works[0])
    assert rejected_by_shard(home, cascade, tmp_path)[WEB[0]] is None


def test_scores_of_a_cascade_are_never_published_as_those_of_a_whole_shard(home, cascade, tmp_path):
    fresh = shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("scored_shards_shards"))
    mixed = [works_of(fresh)[1], under(fresh, cascade)[2]]
    with pytest.raises(ConservationError, match="pairs of a shard that is scored whole"):
        list(score_works(mixed, REFERENCE))


def test_without_a_cascade_nothing_about_a_shard_changes(home, tmp_path):
    (work, *_) = works_of(shutil.copytree(home, tmp_path / "home"))
    assert work.cascade is None
    artifact = next(artifact for _, artifact, _ in score_works([work], REFERENCE))
    assert artifact.names() == ["quarantine.parquet", "scores.parquet"]
    assert "rejected" not in artifact.facts
    assert len(artifact.inputs) == 2


@pytest.mark.slow
def test_other_processes_make_the_same_bytes(home, cascade, tmp_path):
    ours = {shard: artifact.data_version for shard, artifact in published(home, cascade).items()}
    other = shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("scored_shards_shards"))
    theirs = {
        shard: artifact.data_version for shard, artifact in published(other, cascade, Where("devices", 2)).items()
    }
    assert theirs == ours


# The decision.


@pytest.fixture
def plan(tmp_path):
    return artifacts.publish(
        LocalStore(tmp_path / "store"), "cascade_plan", "p" * 32, {}, code_version=1, inputs=[], config={}, facts={}
    )


CASCADE = Cascade("reward_model/x/manifest.json", "c" * 64, {"web": 0.25, "cc12m": -1.5})


def test_a_cascade_is_off_until_it_is_adopted_and_off_again_after(plan):
    store = plan.store
    assert applied(store, "m" * 64) == (None, "none is in force", None)
    assert turn_off(store, by="a", why="b") is None
    made = adopt(store, CASCADE, plan, scores="m" * 64, bound=0.01, by="ada", why="saves half")
    assert adopt(store, CASCADE, plan, scores="m" * 64, bound=0.01, by="bob", why="again").version == made.version == 1
    assert (made.value["by"], made.value["why"], made.value["plan"]) == ("ada", "saves half", plan.manifest_key)
    assert applied(store, "m" * 64).cascade == CASCADE
    assert applied(store, "m" * 64).bound == 0.01
    assert turn_off(store, by="ada", why="too many wrong").version == 2
    assert turn_off(store, by="ada", why="again").version == 2
    assert applied(store, "m" * 64)[0] is None
    assert current(store).value["action"] == "off"


def test_a_cascade_that_was_planned_for_another_model_is_not_applied_and_says_so(plan, caplog):
    adopt(plan.store, CASCADE, plan, scores="m" * 64, bound=0.01, by="ada", why="saves half")
    cascade, said, _ = applied(plan.store, "n" * 64)
    assert cascade is None
    assert "planned for model mmmmmmmmmmmm, not nnnnnnnnnnnn" in said
    assert said in caplog.text


def test_a_threshold_survives_the_way_through_the_store(plan):
    value = float(np.float32(0.1))
    adopt(plan.store, replace(CASCADE, reject_below={"web": value}), plan, scores="m", bound=0.01, by="a", why="b")
    assert applied(plan.store, "m")[0].reject_below["web"] == value
    assert not np.float32(0.1) < value
