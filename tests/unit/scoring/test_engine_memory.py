"""A batch that does not fit is halved; what the pairs get does not change by it."""

import numpy as np
import pytest
import torch

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.errors import CompalignError
from compalign_dagster.images import ImageRejected
from compalign_dagster.scoring import engine
from compalign_dagster.scoring.engine import Scorer, ScoringConfig, score_shard
from compalign_dagster.scoring.forward import Forward, out_of_memory
from compalign_dagster.scoring.tables import FIGURES
from tests.support.scenes_shard import scenes_shard
from tests.unit.scoring.test_engine import Counting

WAYS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    RuntimeError("could not create a primitive: not enough memory"),
]


class Narrow(Counting):
    """Memory for so many images and captions at once, and no more."""

    def __init__(self, images, captions=1 << 30, error=WAYS[0]):
        super().__init__()
        self.most_images, self.most_captions, self.error = images, captions, error

    def encode_images(self, batch):
        if len(batch) > self.most_images:
            raise self.error
        return super().encode_images(batch)

    def forward(self, image_states, captions, image_index):
        if len(captions) > self.most_captions:
            raise self.error
        return super().forward(image_states, captions, image_index)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return scenes_shard(tmp_path_factory.mktemp("crawl"), 12, 3, size=(40, 30))


@pytest.fixture(scope="module")
def pairs(shard):
    return index_shard(shard).pairs


@pytest.mark.parametrize("error", WAYS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_and_the_rewards_are_the_same(shard, pairs, error):
    found = score_shard(Narrow(3, error=error), "v", shard, pairs, ScoringConfig(batch_images=12))
    assert (found.batch_images, found.halved) == (3, 2)
    wanted = score_shard(Counting(), "v", shard, pairs, ScoringConfig(batch_images=12)).scores
    assert found.scores.equals(wanted)


def test_captions_that_do_not_fit_are_halved_too(shard, pairs):
    model = Narrow(100, captions=2)
    found = score_shard(model, "v", shard, pairs, ScoringConfig(batch_images=4))
    assert max(model.asked) <= 2
    wanted = score_shard(Counting(), "v", shard, pairs, ScoringConfig(batch_images=4)).scores
    np.testing.assert_allclose(found.scores["reward"].to_numpy(), wanted["reward"].to_numpy(), rtol=1e-6)


def test_the_smaller_batch_stays_for_the_shards_that_follow(shard, pairs):
    scorer = Scorer(Narrow(3), "v", ScoringConfig(batch_images=12))
    first, second = scorer.score_all([(shard, pairs), (shard, pairs)])
    assert (first.halved, second.halved) == (2, 0)
    assert second.batch_images == 3
    assert first.scores.equals(second.scores)


def test_where_not_even_one_pair_fits_the_error_names_the_shard_and_what_to_do(shard, pairs):
    with pytest.raises(CompalignError, match=r"web/00000\.tar.*CUDA out of memory.*Free memory"):
        score_shard(Narrow(0), "v", shard, pairs, ScoringConfig(batch_images=12))


class Starved(Counting):
    """No memory to prepare the third image, whoever takes it up."""

    def prepare(self, image):
        self.prepared = getattr(self, "prepared", 0) + 1
        if self.prepared == 3:
            raise MemoryError
        return super().prepare(image)


def test_a_lack_of_memory_beside_the_device_fails_the_shard_and_quarantines_nothing(shard, pairs):
    with pytest.raises(CompalignError, match="expected memory to decode it"):
        score_shard(Starved(), "v", shard, pairs, ScoringConfig(decoders=1))
    assert len(score_shard(Counting(), "v", shard, pairs).quarantine) == 0, "run again, it has its rewards"


def test_the_planted_bug_of_refusing_an_image_for_a_lack_of_memory_costs_its_pairs(shard, pairs, monkeypatch):
    monkeypatch.setattr(engine, "no_memory", lambda data: ImageRejected("image_undecodable", "MemoryError"))
    assert len(score_shard(Starved(), "v", shard, pairs, ScoringConfig(decoders=1)).quarantine) == 3


def test_another_failure_is_not_taken_for_a_lack_of_memory(shard, pairs):
    model = Narrow(3, error=RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        score_shard(model, "v", shard, pairs, ScoringConfig(batch_images=12))
    assert model.encoded == []
    assert not out_of_memory(ValueError("out of memory"))


def test_the_planted_bug_of_going_on_behind_the_failed_part_loses_rewards(shard, pairs, monkeypatch):
    tried = Forward._tried

    def skips(self, prepared, captions, owned, what):
        found = tried(self, prepared, captions, owned, what)
        return torch.full((sum(map(len, owned)), len(FIGURES)), torch.nan) if found is None else found

    monkeypatch.setattr(Forward, "_tried", skips)
    found = score_shard(Narrow(3), "v", shard, pairs, ScoringConfig(batch_images=12))
    assert len(found.quarantine) > 0
