"""Captions that are read apart from images: encoded with those of their length, given back in the pairs' order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.errors import CompalignError
from compalign_dagster.scoring import forward
from compalign_dagster.scoring.config import batch_tokens
from compalign_dagster.scoring.engine import Scorer, ScoringConfig, score_shard
from compalign_dagster.scoring.tolerance import difference
from tests.support.scenes_shard import scenes_shard
from tests.unit.scoring.test_engine import Counting


class Apart(Counting):
    """Reads captions alone; remembers how many were read at once, padded to how much; memory for some tokens only."""

    captions_apart = True

    def __init__(self, tokens=1 << 30, **settings):
        super().__init__(**settings)
        self.most, self.read = tokens, []

    def encode_captions(self, captions):
        assert not torch.is_grad_enabled()
        width = max(self.token_counts(captions))
        if width * len(captions) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.read.append((len(captions), width))
        return torch.tensor([[float(len(text))] for text in captions])

    def forward(self, image_states, captions, image_index):
        assert isinstance(captions, torch.Tensor)
        return super().forward(image_states, ["x" * int(length) for length in captions[:, 0]], image_index)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return scenes_shard(tmp_path_factory.mktemp("crawl"), 60, 5, size=(40, 30))


@pytest.fixture(scope="module")
def pairs(shard):
    return index_shard(shard).pairs


@pytest.fixture(scope="module")
def wanted(shard, pairs):
    return score_shard(Counting(), "v", shard, pairs).scores


def roomy(**settings):
    """A model that reads captions of any length whole."""
    model = Apart(**settings)
    model.config = replace(model.config, max_caption_tokens=77)
    return model


def test_rewards_are_in_the_pairs_order_whatever_their_captions_lengths_are(shard, pairs, wanted):
    model = roomy()
    found = score_shard(model, "v", shard, pairs, ScoringConfig(batch_images=7, batch_captions=11))
    assert len(model.read) > 1
    assert found.scores.equals(wanted)


def test_the_planted_bug_of_leaving_results_in_the_order_of_the_buckets_mixes_up_rewards(
    shard, pairs, wanted, monkeypatch
):
    monkeypatch.setattr(torch.Tensor, "index_select", lambda self, dim, rows: self)
    found = forward.Forward(roomy(), ScoringConfig(), torch.device("cpu"))
    captions = pairs["caption"].to_pylist()
    read = found.read(captions, found.model.token_counts(captions), "pairs")
    assert read[:, 0].tolist() != [len(text) for text in captions]


def test_captions_are_read_with_those_of_their_length_within_a_budget_of_tokens(shard, pairs):
    model = roomy()
    score_shard(model, "v", shard, pairs)
    assert sum(count for count, _ in model.read) == len(pairs)
    assert all(count * width <= batch_tokens("cpu") for count, width in model.read)
    widths = [width for _, width in model.read]
    assert widths == sorted(widths)
    computed = sum(count * width for count, width in model.read)
    needed = sum(model.token_counts(pairs["caption"].to_pylist()))
    in_order = [pairs["caption"].to_pylist()[at : at + 40] for at in range(0, len(pairs), 40)]
    padded = sum(len(texts) * max(model.token_counts(texts)) for texts in in_order)
    assert computed < 1.2 * needed < 1.5 * needed < padded


def words_of(shard, pairs, model):
    """How far `progress` says that scoring is, word by word."""
    seen = []
    score_shard(model, "v", shard, pairs, progress=lambda done, total, what: seen.append(done))
    return seen


def test_each_batch_of_captions_that_is_read_is_a_sign_of_life_before_any_pair_is_done(shard, pairs):
    model = roomy()
    seen = words_of(shard, pairs, model)
    assert len(model.read) > 1
    assert seen[: len(model.read)] == [0] * len(model.read)
    assert seen[len(model.read)] > 0
    assert seen == sorted(seen)
    assert seen[-1] == len(pairs)


def test_the_planted_bug_of_reading_all_captions_in_silence_turns_this_red(shard, pairs, monkeypatch):
    read = forward.Forward.read
    monkeypatch.setattr(
        forward.Forward, "read", lambda self, captions, counts, what, _: read(self, captions, counts, what)
    )
    assert 0 not in words_of(shard, pairs, roomy())


def test_what_does_not_fit_into_memory_is_read_in_halves_with_the_same_rewards(shard, pairs, wanted):
    scorer = Scorer(roomy(tokens=100), "v", ScoringConfig())
    first, second = scorer.score_all([(shard, pairs), (shard, pairs)])
    assert first.halved > 0 == second.halved
    assert first.scores.equals(wanted)


def test_a_caption_for_which_there_is_no_memory_is_named_with_its_shard(shard, pairs):
    with pytest.raises(CompalignError, match=r"web/00000\.tar.*memory for one image and one caption"):
        score_shard(roomy(tokens=3), "v", shard, pairs)


def test_a_shard_without_pairs_has_no_captions_to_read(shard, pairs):
    assert len(score_shard(roomy(), "v", shard, pairs.slice(0, 0)).scores) == 0


def test_one_caption_that_is_larger_than_the_budget_is_read_alone():
    assert forward.fitting(np.array([9, 9]), 5) == 1
    assert forward.fitting(np.array([2, 2, 3]), 6) == 2
    assert forward.fitting(np.array([2, 2, 2]), 6) == 3


def test_a_real_pair_of_towers_gives_the_same_numbers_and_the_planted_bug_others(shard, pairs, tmp_path, monkeypatch):
    from compalign_dagster.reward.config import reward_config
    from compalign_dagster.reward.dual import DualReward
    from tests.support.tiny_dual import tiny_dual

    captions = pairs["caption"].to_pylist()
    source = tiny_dual("clip", tmp_path, captions)
    model = DualReward.build(reward_config({"backbone": "dual", "model": str(source)}), None)

    def rewards():
        return score_shard(model, "v", shard, pairs, ScoringConfig(device="cpu")).scores["reward"].to_numpy()

    found = rewards()
    monkeypatch.setattr(DualReward, "captions_apart", False)
    batch_by_batch = rewards()
    assert difference(batch_by_batch, found, 0.3).tolerated
    monkeypatch.setattr(DualReward, "captions_apart", True)
    monkeypatch.setattr(forward.Forward, "read", _in_bucket_order)
    assert not difference(batch_by_batch, rewards(), 0.3).tolerated


def _in_bucket_order(self, captions, counts, what, beat):
    return self.model.encode_captions(sorted(captions, key=lambda text: len(text.split())))
