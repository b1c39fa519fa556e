import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.anchors import tables
from benchmarks.anchors.__main__ import main, write
from benchmarks.anchors.arms import ALL, ARMS, BLIP, FEW, measure_blip, measure_free
from benchmarks.anchors.figures import compare
from benchmarks.anchors.network import FreeReward, free_backbone
from benchmarks.evidence.pack import Pack, of_source
from compalign_dagster.errors import InputError
from compalign_dagster.evaluation.evidence import evidence_from
from compalign_dagster.evaluation.held_out import HeldOut, score_held_out
from compalign_dagster.reward import offline_encoders
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.model import backbone
from tests.support.seeing import Seeing
from tests.support.tiny_reward import TINY, tiny_data
from tests.unit.benchmarks.test_evidence import as_experts
from tests.unit.reward.test_offline import needs_wheels


def seen(folder) -> tuple[HeldOut, Pack]:
    """Squares judged by experts, and what a rule that sees the colour says of them."""
    data = tiny_data(folder, judged=16, rated=True)
    data = replace(data, ranks=as_experts(data.ranks), comparisons=as_experts(data.comparisons))
    own = {row["image_id"]: [row["caption"]] for row in data.captions.to_pylist() if row["caption_id"] == "a"}
    pack = Pack(of_source(data, ["expert"]), own)
    return score_held_out(Seeing(), pack.data, split="train", seed=7, matched=own, probes=0), pack


def with_offsets(held: HeldOut) -> np.ndarray:
    """The same order of captions within each image, and an offset for each image that says nothing."""
    return held.scores["reward"] + np.random.default_rng(1).normal(0, 20, len(held.images))[held.image]


def test_an_offset_for_each_image_costs_nothing_within_and_the_separation_across_images(tmp_path):
    held, pack = seen(tmp_path)
    found = compare(held, pack.data, {ALL: held.scores["reward"], "offsets": with_offsets(held)}, ALL, seed=7)
    lost = found["offsets"][f"minus {ALL}"]
    assert lost["mean_preference_accuracy"]["value"] == lost["own_within"]["value"] == 0
    assert lost["cross_image_auc"]["high"] < -0.1
    assert lost["own_left"]["high"] < -0.1
    assert lost["human_auc"]["high"] < -0.1


def test_what_is_left_across_images_is_the_figure_of_the_evidence(tmp_path):
    held, pack = seen(tmp_path)
    held = held.with_scores({"reward": with_offsets(held)})
    ours = compare(held, pack.data, {ALL: held.scores["reward"]}, ALL, seed=7)[ALL]
    evidence = evidence_from(held, pack.data, np.full(len(held.rows), np.nan), seed=7)["across_images"]
    assert ours["own_left"] == evidence["matched"]["kept"]
    assert ours["human_left"] == evidence["human"]["kept"]
    assert ours["cross_image_auc"] == evidence["matched"]["across"]


def test_the_free_head_is_a_backbone_only_within_its_benchmark():
    with free_backbone():
        assert backbone("free") is FreeReward
        assert reward_config({"backbone": "free"}).hard_negatives == 0
    with pytest.raises(InputError):
        reward_config({"backbone": "free"})


@needs_wheels
@pytest.mark.slow
def test_the_free_head_takes_the_towers_of_stage_0_and_a_head_of_its_own(tmp_path):
    offline_encoders.remember_in(None)
    with free_backbone():
        config = reward_config({"backbone": "free", "hidden_size": 16})
        torch.manual_seed(1)
        learned = FreeReward(config)
        learned.save(tmp_path)
        torch.manual_seed(2)
        begun = FreeReward.build(replace(config, model=str(tmp_path)), tiny_data(tmp_path / "data"))
    towers = {name for name in learned.state_dict() if name.startswith(("image.", "caption."))}
    for name, value in learned.state_dict().items():
        same = torch.equal(value, begun.state_dict()[name])
        assert same or name not in towers
    assert not torch.equal(learned.head.layers[0].weight, begun.head.layers[0].weight)
    reread = FreeReward.load(tmp_path, config).eval()
    states = learned.encode_images(learned.prepare(Image.new("RGB", (32, 32), "red"))[None])
    scores = [model.eval().heads(states, ["a red square"], torch.tensor([0])) for model in (learned, reread)]
    assert torch.equal(*scores)


@pytest.mark.slow
def test_every_arm_of_the_small_blip_is_measured_and_told_in_tables(tmp_path):
    _, pack = seen(tmp_path)
    tiny = {name: value for name, value in TINY.items() if not name.startswith("pretrain")}
    (tmp_path / "model").mkdir()
    run = measure_blip(
        pack,
        tmp_path / "model",
        seed=7,
        changed={**BLIP, "steps": 2, "batch_images": 8, "validate_every": 1},
        stage_0={**tiny, "pretrain_steps": 2, "pretrain_batch": 8},
    )
    json.dumps(run, allow_nan=False)
    assert list(run["arms"]) == list(run["curves"]) == list(FEW)
    assert run["train_images"] + run["images"] == 16
    told = tables.page([run])
    assert all(f"| {name} | " in told for name in FEW)
    assert "| 2 | " in told.partition("| step |")[2]


@needs_wheels
@pytest.mark.slow
def test_the_free_head_is_cross_validated_from_scratch_and_after_stage_0(tmp_path):
    _, pack = seen(tmp_path)
    (tmp_path / "model").mkdir()
    offline_encoders.remember_in(None)
    arms = {name: ARMS[name] for name in (ALL, "no anchors")}
    given = {"folds": 2, "seed": 7, "changed": {"steps": 2, "batch_images": 8, "validate_every": 1}}
    learning = {"pretrain_steps": 2, "pretrain_batch": 8}
    runs = [
        {"part": part, **measure_free(pack, tmp_path / "model", arms, stage_0=stage_0, **given)}
        for part, stage_0 in (("scratch", None), ("stage-0", learning))
    ]
    assert [run["images"] for run in runs] == [16, 16]
    assert runs[0]["arms"][ALL]["own_within"] != runs[1]["arms"][ALL]["own_within"]
    write(runs[:1], tmp_path / "out")
    told = write(runs[1:], tmp_path / "out")
    assert "## Free head, from scratch" in told
    assert "after 2 steps of 8 pairs on 24 crawl images" in told
    assert len(json.loads((tmp_path / "out" / "result.json").read_text())["runs"]) == 2


def test_the_arms_switch_terms_off_and_nothing_else():
    weights = {"preference_weight", "anchor_weight", "rating_weight", "criteria_weight"}
    assert all(set(changed) <= weights and not any(changed.values()) for changed in ARMS.values())
    off = {name for changed in ARMS.values() if len(changed) == 1 for name in changed}
    assert off == weights


def test_without_the_data_pack_it_says_so_and_exits_with_2(tmp_path, capsys):
    assert main(["--datapack", str(tmp_path)]) == 2
    assert "judged-00000.tar" in capsys.readouterr().err
