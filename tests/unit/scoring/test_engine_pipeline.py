"""Shards flow through the engine's threads: in order, ahead of the model but not far, leaving no trace."""

import gzip
import io
import os
import random
import threading
import time
from collections import deque
from dataclasses import replace

import pytest

from compalign_dagster.cli.score import _jobs
from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.parquet import write
from compalign_dagster.scoring import feed
from compalign_dagster.scoring.engine import Scorer, ScoringConfig
from compalign_dagster.scoring.meter import STAGES
from compalign_dagster.store import LocalStore, ObjectChangedError
from tests.support.tiny_reward import crawl_shard
from tests.unit.scoring.test_engine import Counting

CONFIG = ScoringConfig(batch_images=4, queue_images=4, decoders=3)


class Slow(Counting):
    """Decodes in an order that differs each time."""

    def prepare(self, image):
        time.sleep(random.random() / 200)
        return super().prepare(image)


class Broken(Counting):
    """Fails at the second batch, or while the second image is prepared."""

    def __init__(self, stage):
        super().__init__()
        self.stage, self.prepared = stage, 0

    def prepare(self, image):
        self.prepared += 1
        if self.stage == "prepare" and self.prepared > 1:
            raise ZeroDivisionError
        return super().prepare(image)

    def encode_images(self, batch):
        if self.stage == "encode" and self.encoded:
            raise ZeroDivisionError
        return super().encode_images(batch)


class Leaky(LocalStore):
    """A folder that remembers which of its streams are still open."""

    def __init__(self, folder):
        super().__init__(folder)
        self.opened = []

    def open(self, key, *, stamp=None):
        self.opened.append(super().open(key, stamp=stamp))
        return self.opened[-1]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    shards = [crawl_shard(folder, count=10 + at, name=f"web/{at:05d}.tar") for at in range(5)]
    return [(shard, index_shard(shard).pairs) for shard in shards]


@pytest.fixture
def packed(jobs, tmp_path):
    """A compressed shard, which stays open while it is read, and its store."""
    shard, _ = jobs[0]
    (tmp_path / "web").mkdir()
    (tmp_path / "web/00000.tar.gz").write_bytes(gzip.compress(shard.store.read(shard.key)))
    found = Shard("web/00000.tar.gz", Leaky(tmp_path), "web/00000.tar.gz")
    pairs = index_shard(found).pairs
    found.store.opened.clear()
    return found, pairs


def threads():
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "decode"))}


def test_shards_come_in_their_order_with_the_scores_they_have_alone(jobs):
    together = list(Scorer(Counting(), "v", CONFIG).score_all(iter(jobs)))
    assert [found.scores["shard"][0].as_py() for found in together] == [shard.name for shard, _ in jobs]
    for found, (shard, pairs) in zip(together, jobs, strict=True):
        assert found.scores.equals(Scorer(Counting(), "v", CONFIG).score(shard, pairs).scores)


def test_an_empty_shard_among_others_has_no_scores_and_costs_them_nothing(jobs):
    (shard, pairs), following = jobs[:2]
    first, second = Scorer(Counting(), "v", CONFIG).score_all([(shard, pairs.slice(0, 0)), following])
    assert len(first.scores) == len(first.quarantine) == 0
    assert len(second.scores) == len(following[1])


def test_no_shards_are_no_scores():
    assert list(Scorer(Counting(), "v", CONFIG).score_all([])) == []


def digest(jobs, tmp_path):
    found = Scorer(Slow(), "v", CONFIG).score_all(jobs)
    return [write(part.scores, tmp_path / f"{random.random()}.parquet").read_bytes() for part in found]


def test_bytes_do_not_depend_on_which_image_was_decoded_first(jobs, tmp_path):
    assert digest(jobs, tmp_path) == digest(jobs, tmp_path)


def test_the_planted_bug_of_taking_images_as_they_are_ready_mixes_up_rewards(jobs, monkeypatch):
    shard, pairs = jobs[0]
    wanted = Scorer(Counting(), "v", CONFIG).score(shard, pairs).scores

    def hasty(self, meter):
        found = []
        while (item := self._next()) is not None:
            found.append(item)
        done = sorted(found, key=lambda item: item.prepared.result().sum())
        yield from (feed.Picture(rows.rows, item.prepared) for rows, item in zip(found, done, strict=True))

    monkeypatch.setattr(feed.Feed, "pictures", hasty)
    roomy = ScoringConfig(batch_images=4, queue_images=100)
    assert not Scorer(Counting(), "v", roomy).score(shard, pairs).scores.equals(wanted)


def test_the_next_shard_is_read_while_the_model_computes_but_no_more_than_is_asked_for(jobs):
    asked, seen = [], []

    def coming():
        for shard, pairs in jobs * 3:
            asked.append(shard.name)
            yield shard, pairs

    for _ in Scorer(Counting(), "v", CONFIG).score_all(coming()):
        deadline = time.monotonic() + 2
        while len(asked) == len(seen) + 1 and len(asked) < 15 and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(len(asked))
        time.sleep(0.02)
        assert len(asked) - len(seen) <= 2, "four images at most wait, and a shard has ten"
    assert seen[0] >= 2, "the second shard was asked for before the first one's scores were taken"


def test_stages_are_shares_of_the_time_that_sum_to_one(jobs):
    found = Scorer(Slow(), "v", CONFIG).score(*jobs[0])
    assert tuple(found.stages) == STAGES
    assert sum(found.stages.values()) == pytest.approx(1)
    assert found.stages["decode"] > 0.3, "what it waited for is decoding"
    assert (found.device, found.batch_images, found.halved) == ("cpu", 4, 0)


def test_waiting_for_a_shards_pairs_counts_as_reading(jobs):
    def slowly():
        for job in jobs[:2]:
            time.sleep(0.3)
            yield job

    for found in Scorer(Counting(), "v", CONFIG).score_all(slowly()):
        assert found.seconds > 0.2
        assert found.stages["read"] > 0.5


def test_an_image_that_the_feed_loses_is_an_error_and_no_reward_that_is_not_finite(jobs, monkeypatch):
    pictures = feed.Feed.pictures
    monkeypatch.setattr(feed.Feed, "pictures", lambda self, meter: list(pictures(self, meter))[1:])
    with pytest.raises(ConservationError, match=r"expected 10 pairs computed or refused, found 9 \+ 0"):
        Scorer(Counting(), "v", replace(CONFIG, queue_images=100)).score(*jobs[0])


def test_no_thread_and_no_file_is_left_when_all_was_scored(packed):
    Scorer(Counting(), "v", CONFIG).score(*packed)
    assert threads() == set()
    assert [stream.closed for stream in packed[0].store.opened] == [True]


@pytest.mark.parametrize("stage", ["prepare", "encode"])
def test_none_is_left_when_the_model_fails_and_the_failure_is_its_own(packed, stage):
    with pytest.raises(ZeroDivisionError):
        Scorer(Broken(stage), "v", CONFIG).score(*packed)
    assert threads() == set()
    assert [stream.closed for stream in packed[0].store.opened] == [True]


def test_none_is_left_when_nobody_wants_the_rest(jobs, packed):
    found = Scorer(Counting(), "v", CONFIG).score_all([packed, *jobs])
    next(found)
    assert threads(), "it reads ahead"
    found.close()
    assert threads() == set()
    assert [stream.closed for stream in packed[0].store.opened] == [True]


def test_the_planted_bug_of_not_ending_the_reader_leaves_a_thread(jobs, monkeypatch):
    left = []

    def forgets(self, *_):
        left.append(self)

    ends = feed.Feed.__exit__
    monkeypatch.setattr(feed.Feed, "__exit__", forgets)
    found = Scorer(Counting(), "v", CONFIG).score_all(jobs)
    next(found)
    found.close()
    assert threads()
    ends(left[0], None, None, None)
    assert threads() == set()


def test_jobs_that_fail_fail_here_after_the_shards_before_them(jobs):
    closed = []

    def failing():
        try:
            yield jobs[0]
            raise InputError("pairs", expected="a table", found="none", remedy="Index again.")
        finally:
            closed.append(True)

    found = Scorer(Counting(), "v", CONFIG).score_all(failing())
    assert len(next(found).scores) == 10
    with pytest.raises(InputError, match="Index again"):
        next(found)
    assert threads() == set()
    assert closed == [True]


def test_a_shard_that_is_gone_fails_as_its_store_says(jobs, tmp_path):
    shard, pairs = jobs[0]
    with pytest.raises(FileNotFoundError):
        Scorer(Counting(), "v", CONFIG).score(Shard(shard.name, LocalStore(tmp_path), shard.key), pairs)
    assert threads() == set()


def test_a_file_that_is_replaced_after_the_command_line_indexed_it_is_not_scored(tmp_path):
    shard = crawl_shard(tmp_path, count=4, name="web/00000.tar")
    path = tmp_path / "web/00000.tar"
    ((found, pairs),) = _jobs([shard], deque())
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(1, 1))
    with pytest.raises(ObjectChangedError):
        Scorer(Counting(), "v", CONFIG).score(found, pairs)


def test_undecoded_images_that_wait_are_bounded_by_bytes_too():
    line = feed._Line(100, 1000)
    line.put(io.BytesIO(), 900)
    waited = threading.Thread(target=line.wait_for_room, args=(200,))
    waited.start()
    waited.join(0.05)
    assert waited.is_alive(), "900 + 200 bytes are too many"
    line.get()
    waited.join(5)
    assert not waited.is_alive()
    assert line.wait_for_room(5000), "one that is larger than all of it goes through alone"


def test_figures_that_are_fetched_a_batch_later_as_from_a_gpu_are_the_same(jobs):
    shard, pairs = jobs[0]
    told, scorer = [], Scorer(Counting(), "v", CONFIG)
    scorer._lag = 1
    found = scorer.score(shard, pairs, progress=lambda *a: told.append(a[0]))
    assert found.scores.equals(Scorer(Counting(), "v", CONFIG).score(shard, pairs).scores)
    assert told == [4, 8, 10]
