import time
from dataclasses import replace

import pytest

from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.reward import folder as models
from compalign_dagster.scoring import where
from compalign_dagster.scoring import work as module
from compalign_dagster.scoring.config import ScoringConfig
from compalign_dagster.scoring.where import Where, score_works
from compalign_dagster.scoring.work import load_scorer, published, score_and_publish_all
from compalign_dagster.store import LocalStore
from tests.support.scoring import (
    REFERENCE,
    manifests,
    places_of,
    prepare,
    score_and_publish,
    scored,
    travelled,
    versions,
    works_of,
)


@pytest.fixture
def home(tmp_path):
    return prepare(tmp_path / "home", shards=3)


def scorer_of(home):
    works = works_of(home)
    return load_scorer(places_of(home), works[0].model, REFERENCE)


def test_a_work_is_plain_values_that_travel(home):
    works = works_of(home)
    assert travelled(works) == works
    assert len({work.key for work in works}) == 3


def test_a_work_that_travelled_is_scored_from_its_urls_alone(home):
    work = travelled(works_of(home)[0])
    artifact = score_and_publish(scorer_of(home), work)
    assert artifact.facts["scored"] == work.pairs
    assert artifact.facts["device"] == "cpu"
    assert sum(artifact.facts["stages"].values()) == pytest.approx(1, abs=0.01)
    assert artifact.facts["gpu_utilisation"] is None
    assert artifact.facts["cpu_seconds_per_second"] > 0
    artifact.verify()


def test_what_is_published_is_reused_and_no_model_is_loaded_for_it(home, monkeypatch):
    first = scored(home)
    monkeypatch.setattr(models, "load_model", None)
    found = list(score_works(works_of(home), REFERENCE))
    assert [reused for *_, reused in found] == [True] * 3
    assert {work.shard: artifact.data_version for work, artifact, _ in found} == versions(first)
    assert len(manifests(home)) == 3


def test_a_work_that_another_run_published_meanwhile_is_not_scored_again(home, monkeypatch):
    works, scorer = works_of(home), scorer_of(home)
    score_and_publish(scorer, works[1])
    monkeypatch.setattr(module, "_read", counted(module._read, reads := []))
    found = list(score_and_publish_all(scorer, works))
    assert sorted(work.shard for work, _ in found) == [work.shard for work in works]
    assert sorted(reads) == [works[0].shard, works[2].shard]


def counted(function, log):
    def wrapped(work, *rest):
        log.append(work.shard)
        return function(work, *rest)

    return wrapped


def test_a_shard_that_was_written_over_since_it_was_indexed_is_refused(home):
    work = works_of(home)[0]
    path = home / "landing" / work.shard
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(CompalignError, match=r"shard web/00000\.tar .*expected the delivery"):
        scored(home)
    assert published(places_of(home), work) is None


def test_a_shard_that_is_written_over_while_it_is_scored_is_not_published(home, monkeypatch):
    work, publish = works_of(home)[0], module.publish_scores

    def late(work, *rest):
        path = home / "landing" / work.shard
        path.write_bytes(path.read_bytes() + b"\0" * 512)
        return publish(work, *rest)

    monkeypatch.setattr(module, "publish_scores", late)
    with pytest.raises(CompalignError, match="another file, or none"):
        scored(home)
    assert published(places_of(home), work) is None


def test_a_worker_keeps_no_copies_of_what_it_reads(home):
    class Bucket(LocalStore):
        def fetch(self, key):
            raise AssertionError("its copies stay until the process ends")

    works = works_of(home)
    places = module.Places(Bucket(home / "store"), Bucket(home / "landing"))
    assert score_and_publish(load_scorer(places, works[0].model, REFERENCE), works[0], places).facts["scored"]


def test_a_process_that_does_not_see_the_store_says_so(home, tmp_path):
    work = replace(works_of(home)[0], store=str(tmp_path / "elsewhere"))
    with pytest.raises(CompalignError, match="must see the same store"):
        load_scorer(module.Places.of(work), work.model, REFERENCE)


def test_a_gpu_that_is_asked_for_and_not_there_fails_before_anything_is_loaded(home, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(models, "load_model", None)
    for engine in ("here", "devices"):
        with pytest.raises(InputError, match=r"device 'cuda': expected a CUDA device"):
            list(score_works(works_of(home), ScoringConfig(device="cuda"), Where(engine)))


def test_an_unknown_engine_is_refused_by_name():
    with pytest.raises(InputError, match=r"expected one of here, devices, ray, found 'slurm'"):
        Where("slurm")


class Distant(LocalStore):
    """A store whose answers take a while; remembers how many were on their way at once."""

    def __init__(self, folder):
        super().__init__(folder)
        self.asked, self.most = 0, 0

    def read(self, key):
        self.asked += 1
        self.most = max(self.most, self.asked)
        time.sleep(0.05)
        self.asked -= 1
        return super().read(key)


def looked_up(home):
    """What is there of ten works of which two were scored, and how many questions were on their way at once."""
    (work, *_) = works_of(home)
    works = [replace(work, key=f"{at}" * 32, whole_key=f"{at}" * 32) for at in range(8)] + works_of(home)
    places = module.Places(Distant(home / "store"), LocalStore(home / "landing"))
    found = list(where._looked_up(works, places))
    assert [work for work, _ in found] == works
    return [artifact is not None for _, artifact in found], places.store.most


def test_the_store_is_asked_ahead_for_what_was_scored_and_answers_are_in_the_order_of_the_works(home):
    scored(home)
    there, at_once = looked_up(home)
    assert there == [False] * 8 + [True] * len(works_of(home))
    assert at_once > 4


def test_the_planted_bug_of_asking_one_work_after_the_other_is_seen(home, monkeypatch):
    monkeypatch.setattr(where, "_LOOKS", 1)
    assert looked_up(home)[1] == 1


def test_pairs_that_were_scored_before_are_counted_at_once_so_that_they_are_in_no_rate(home):
    works, scorer, seen = works_of(home), scorer_of(home), []
    for work in works[:2]:
        score_and_publish(scorer, work)
    list(score_works(works, REFERENCE, progress=lambda done, total, what: seen.append(done)))
    assert seen[0] == works[0].pairs + works[1].pairs
    assert seen[-1] == sum(work.pairs for work in works)


def test_progress_counts_pairs_of_all_shards_up_to_their_sum(home):
    works, seen = works_of(home), []
    list(score_works(works, REFERENCE, progress=lambda done, total, what: seen.append((done, total, what))))
    total = sum(work.pairs for work in works)
    assert {entry[1:] for entry in seen} == {(total, "pairs")}
    counts = [done for done, *_ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == total
    assert len(set(counts)) > len(works), "shards that are not finished count too"
