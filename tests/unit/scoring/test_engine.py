import numpy as np
import pyarrow as pa
import pytest
import torch

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.tables import QUARANTINE
from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.model import Outputs, RewardModel
from compalign_dagster.scoring.engine import ScoringConfig, score_shard, summary, total
from compalign_dagster.scoring.tables import SCORES
from tests.support.tiny_reward import crawl_shard


class Counting(RewardModel):
    """Rewards a caption by its length and its image by its mean pixel; remembers what it was asked."""

    name = "counting"

    def __init__(self, nan_for=()):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.config = reward_config({"max_caption_tokens": 4})
        self.nan_for, self.encoded, self.asked = set(nan_for), [], []

    @classmethod
    def build(cls, config, data):
        raise NotImplementedError

    def prepare(self, image):
        return torch.from_numpy(np.array(image.resize((2, 2)), np.float32))

    def encode_images(self, batch):
        self.encoded.append(len(batch))
        return batch.flatten(1).mean(1)[:, None, None]

    def forward(self, image_states, captions, image_index):
        assert not torch.is_grad_enabled()
        self.asked.append(len(captions))
        rewards = image_states[image_index, 0, 0] + torch.tensor([float(len(text)) for text in captions])
        rewards[[text in self.nan_for for text in captions]] = torch.nan
        return Outputs.of(rewards * self.weight, cosine=rewards / 1000)

    def heads(self, image_states, captions, image_index):
        raise NotImplementedError

    def token_counts(self, captions):
        return [len(text.split()) for text in captions]

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, folder, config):
        raise NotImplementedError


@pytest.fixture
def shard(tmp_path):
    return crawl_shard(tmp_path, count=10)


@pytest.fixture
def pairs(shard):
    return index_shard(shard).pairs


def with_column(table, name, values):
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def test_every_pair_gets_one_score_in_the_order_of_the_pairs(shard, pairs):
    shuffled = pairs.take([7, 1, 3, 0, 2, 9, 8, 4, 6, 5])
    found = score_shard(Counting(), "v" * 64, shard, shuffled)
    assert found.scores.schema.equals(SCORES)
    assert found.quarantine.schema.equals(QUARANTINE)
    assert found.scores["pair_id"].to_pylist() == shuffled["pair_id"].to_pylist()
    assert set(found.scores["model_version"].to_pylist()) == {"v" * 64}
    straight = score_shard(Counting(), "v", shard, pairs).scores
    by_id = dict(zip(straight["pair_id"].to_pylist(), straight["reward"].to_pylist(), strict=True))
    assert [by_id[pair] for pair in found.scores["pair_id"].to_pylist()] == found.scores["reward"].to_pylist()


def test_a_baseline_that_the_model_lacks_is_null(shard, pairs):
    scores = score_shard(Counting(), "v", shard, pairs).scores
    assert scores["itm"].null_count == len(pairs)
    assert scores["cosine"].null_count == 0


class Telling(Counting):
    """Every figure is the reward moved by a step of its own, so that no two columns can be confused."""

    def __init__(self):
        super().__init__()
        self.calibration.copy_(torch.tensor([0.01, -1.0]))

    def forward(self, image_states, captions, image_index):
        reward = super().forward(image_states, captions, image_index).reward
        criteria = torch.stack([reward + 0.4, reward + 0.5, torch.full_like(reward, torch.nan), reward + 0.7], dim=1)
        others = {"cosine": reward + 0.1, "itm": reward + 0.2, "label_free": reward + 0.3, "reward_std": reward + 0.6}
        return Outputs.of(reward, criteria=criteria, **others)


def test_every_figure_of_the_model_stands_in_its_own_column(shard, pairs):
    scores = score_shard(Telling(), "v", shard, pairs).scores
    reward = scores["reward"].to_numpy()
    steps = {"cosine": 0.1, "itm": 0.2, "label_free": 0.3, "accuracy": 0.4, "completeness": 0.5, "context": 0.7}
    steps["reward_std"] = 0.6
    for name, step in steps.items():
        np.testing.assert_allclose(scores[name].to_numpy() - reward, step, atol=1e-3, err_msg=name)
    assert scores["vividness"].null_count == len(pairs), "a criterion that was never rated"
    np.testing.assert_allclose(scores["human_fit"].to_numpy(), 1 / (1 + np.exp(1 - 0.01 * reward)), atol=1e-5)


def test_an_image_is_encoded_once_for_all_of_its_captions(shard, pairs):
    twice = pa.concat_tables([pairs, with_column(pairs, "caption_index", [1] * len(pairs))])
    model = Counting()
    found = score_shard(model, "v", shard, twice, ScoringConfig(batch_images=4))
    assert model.encoded == [4, 4, 2]
    assert len(found.scores) == 20


@pytest.mark.parametrize(("images", "captions"), [(1, 1), (3, 2), (100, 100)])
def test_batches_change_no_score_and_stay_bounded(shard, pairs, images, captions):
    model = Counting()
    found = score_shard(model, "v", shard, pairs, ScoringConfig(batch_images=images, batch_captions=captions))
    assert max(model.encoded) <= images
    assert max(model.asked) <= captions
    assert found.scores["reward"].to_pylist() == score_shard(Counting(), "v", shard, pairs).scores["reward"].to_pylist()


def test_a_reward_that_is_not_finite_is_quarantined_and_nothing_else_is_lost(shard, pairs):
    bad = pairs["caption"][0].as_py()
    found = score_shard(Counting(nan_for=[bad]), "v", shard, pairs)
    count = pairs["caption"].to_pylist().count(bad)
    assert len(found.quarantine) == count
    assert len(found.scores) == len(pairs) - count
    row = found.quarantine.to_pylist()[0]
    assert row["reason"] == "reward_not_finite"
    assert (row["shard"], row["key"], row["unit"], row["caption_index"]) == (shard.name, "0000", "caption", 0)
    assert np.isfinite(found.scores["reward"].to_numpy()).all()


def test_an_image_that_no_longer_decodes_costs_its_own_pairs(shard, pairs):
    lengths = pairs["image_length"].to_pylist()
    lengths[4] //= 3
    found = score_shard(Counting(), "v", shard, with_column(pairs, "image_length", lengths))
    assert found.quarantine["key"].to_pylist() == ["0004"]
    assert found.quarantine["reason"].to_pylist()[0].startswith("image_")
    assert len(found.scores) == len(pairs) - 1


def test_a_pixel_budget_holds_at_scoring_too(shard, pairs):
    found = score_shard(Counting(), "v", shard, pairs, ScoringConfig(image_pixels=10))
    assert set(found.quarantine["reason"].to_pylist()) == {"image_too_large"}
    assert len(found.scores) == 0


def test_over_long_captions_are_scored_and_counted(shard, pairs):
    captions = ["five words are too many", *pairs["caption"].to_pylist()[1:]]
    found = score_shard(Counting(), "v", shard, with_column(pairs, "caption", captions))
    assert found.over_long == 1
    assert len(found.scores) == len(pairs)


def test_a_shard_without_pairs_has_no_scores(shard, pairs):
    found = score_shard(Counting(), "v", shard, pairs.slice(0, 0))
    assert len(found.scores) == len(found.quarantine) == 0
    assert found.scores.schema.equals(SCORES)


def test_progress_counts_up_to_all_pairs(shard, pairs):
    told = []
    score_shard(Counting(), "v", shard, pairs, ScoringConfig(batch_images=4), progress=lambda *a: told.append(a))
    assert [done for done, _, _ in told] == [4, 8, 10]
    assert {total for _, total, _ in told} == {10}


def test_pairs_of_another_shard_and_unknown_precisions_are_refused(shard, pairs):
    with pytest.raises(InputError, match="web/00001.tar"):
        score_shard(Counting(), "v", shard, with_column(pairs, "shard", ["web/00001.tar"] * len(pairs)))
    with pytest.raises(InputError, match="fp16"):
        score_shard(Counting(), "v", shard, pairs, ScoringConfig(precision="fp16"))


def test_facts_of_many_shards_add_up(shard, pairs):
    found = [score_shard(Counting(), "v", shard, part) for part in (pairs.slice(0, 4), pairs.slice(4))]
    facts = total(found)
    assert (facts["scored"], facts["quarantined"]) == (10, 0)
    figures = summary(found[0].scores)
    assert figures["pairs"] == 4
    assert figures["least"] <= figures["mean"] <= figures["greatest"]
