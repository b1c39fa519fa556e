"""A cascade in the graph: planned, adopted, used, audited, turned off; and nothing of it before that."""

import shutil
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import torch

from assets.scored_shards import exact
from compalign_dagster import decisions, latest, parquet
from compalign_dagster.definitions import build_defs
from compalign_dagster.errors import InputError
from compalign_dagster.reward import promoted
from compalign_dagster.reward.folder import save_model
from compalign_dagster.reward.model import backbone
from compalign_dagster.scoring import in_force
from compalign_dagster.scoring.auditing import judged
from compalign_dagster.settings import load
from compalign_dagster.store import LocalStore
from tests.support.pipeline import BATCH, Pipeline, failures, metadata_of
from tests.support.scoring import manifests, prepare
from tests.support.tiny_reward import tiny_config

ALLOWED = 0.3  # a sample of a hundred squares promises no less
WHOLE = "batch-00002"


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """Two indexed batches, the first of two shards, and a promoted model; a folder of one that rewards alike."""
    torch.manual_seed(1)
    home = prepare(tmp_path_factory.mktemp("cascade") / "home", shards=3, pairs=60, batch_shards=2)
    store = LocalStore(home / "store")
    model = promoted.promoted(store)
    network = backbone("blip-tiny").load(model.checkout(home / "again"), tiny_config(steps=3))
    return home, save_model(network, home / "cheap", metrics={}, record={})


@pytest.fixture(scope="module")
def scene(crawl):
    """One story: its steps are the tests below, in their order."""
    home, cheap = crawl
    settings = load(home=home, device="cpu")
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("crawl_batch", [BATCH, WHOLE])
    return Pipeline(settings, build_defs(settings=settings), instance), str(cheap)


def fold(pipeline: Pipeline) -> dg.ExecuteInProcessResult:
    """Materialise `score_ledger` alone."""
    return dg.materialize([pipeline.defs.resolve_assets_def("score_ledger")], instance=pipeline.instance)


def plan(pipeline: Pipeline, **config: object) -> dg.ExecuteInProcessResult:
    """Materialise `cascade_plan` as a person does."""
    given = {"bound": ALLOWED, "pairs": 100, **config}
    return pipeline.defs.resolve_job_def("plan_cascade").execute_in_process(
        instance=pipeline.instance,
        run_config={"ops": {"cascade_plan": {"config": given}}},
        raise_on_error=False,
    )


def verdict(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (found,) = [
        check for check in result.get_asset_check_evaluations() if check.check_name == "cascade_changes_few_decisions"
    ]
    return found


def test_without_a_decision_shards_are_scored_as_ever_and_the_claim_says_so(scene):
    pipeline, _ = scene
    shown = metadata_of(pipeline.must("score_batch", WHOLE), "scored_shards")
    assert shown["cascade"] == "none is in force"
    assert "cascade_passes" not in shown
    result = pipeline.must("refilter")
    assert verdict(result).passed
    assert verdict(result).metadata["verdict"].value == "no cascade was used"
    ledger = parquet.read(latest.require(pipeline.store, "score_ledger").fetch("ledger.parquet"))
    assert set(ledger["rejected"].to_pylist()) == {0}
    assert set(ledger["rejected_key"].to_pylist()) == {None}


def test_a_plan_says_what_it_would_do_and_decides_nothing(scene):
    pipeline, cheap = scene
    result = plan(pipeline, cheap=cheap)
    assert result.success, failures(result)
    shown = metadata_of(result, "cascade_plan")
    assert shown["in_force"] == "none is in force"
    assert 0 < shown["passes"] < 1
    assert shown["wrong_decisions"] == 0.0
    assert 0 < shown["wrong_decisions_at_most"] <= ALLOWED
    artifact = latest.require(pipeline.store, "cascade_plan")
    sample = parquet.read(artifact.fetch("sample.parquet"))
    assert sample["cheap"].equals(sample["reward"]), "the same network twice"
    assert [source.kind for source in artifact.inputs] == ["reward_model", "cheap_model"]
    assert metadata_of(plan(pipeline, cheap=cheap), "cascade_plan")["reused"]
    assert in_force.current(pipeline.store) is None


def test_an_adopted_plan_turns_pairs_down_and_no_pair_is_lost(scene):
    pipeline, cheap = scene
    before = len(manifests(pipeline.settings.home))
    assert metadata_of(plan(pipeline, cheap=cheap, adopt=True, audit=0.3), "cascade_plan")["in_force"].startswith("dec")
    shown = metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")
    assert shown["cascade"].startswith("decision 1 of ")
    assert shown["cascade_rejected"] > 0
    assert shown["cascade_audited"] > 0
    assert shown["pairs"] == shown["scored"] + shown["cascade_rejected"] + shown["quarantined"]
    assert shown["cascade_passes"] == pytest.approx(
        1 - (shown["cascade_rejected"] + shown["cascade_audited"]) / shown["pairs"], abs=1e-4
    )
    assert len(manifests(pipeline.settings.home)) == before + 2
    assert metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")["reused"]
    assert latest.require(pipeline.store, "scored_shards", BATCH).facts["bound"] == ALLOWED


def test_a_batch_that_was_scored_before_keeps_its_rewards_and_costs_nothing(scene):
    pipeline, _ = scene
    before = len(manifests(pipeline.settings.home))
    shown = metadata_of(pipeline.must("score_batch", WHOLE), "scored_shards")
    assert shown["cascade"].endswith("is not applied: every pair of this batch was scored before")
    assert shown["reused"]
    assert shown["scored"] == shown["pairs"]
    assert len(manifests(pipeline.settings.home)) == before


def ledger_rows(pipeline: Pipeline) -> list[dict]:
    """Those of the batch that was scored under the cascade, and last that of the other one."""
    assert fold(pipeline).success
    return parquet.read(latest.require(pipeline.store, "score_ledger").fetch("ledger.parquet")).to_pylist()


def test_the_ledger_names_what_was_turned_down(scene):
    pipeline, _ = scene
    *rows, whole = ledger_rows(pipeline)
    assert (whole["rejected"], whole["rejected_key"]) == (0, None)
    for row in rows:
        rejected = parquet.read(pipeline.store.fetch(row["rejected_key"]))
        assert rejected.num_rows == row["rejected"] > 0
        assert row["pairs"] == row["scored"] + row["rejected"] + row["quarantined"]


def test_the_planted_bugs_a_rejected_pair_that_is_lost_or_scored_too_are_found(scene):
    pipeline, _ = scene
    store, rows = pipeline.store, ledger_rows(pipeline)
    counts = {name: sum(row[name] for row in rows) for name in ("pairs", "scored", "rejected", "quarantined")}
    assert exact(store, rows, counts)["problems"] == []
    lost = exact(store, [{**rows[0], "rejected_key": None}, *rows[1:]], counts)["problems"]
    assert any("rejected pairs were found, not" in text for text in lost)
    twice = exact(store, [{**rows[0], "rejected_key": rows[0]["scores_key"]}, *rows[1:]], counts)["problems"]
    assert any("occurrences scored or rejected twice" in text for text in twice)
    assert any(
        "pairs are not" in text for text in exact(store, rows, {**counts, "pairs": counts["pairs"] + 1})["problems"]
    )


def audited(pipeline: Pipeline, **cuts: float):
    """The audit under these cuts of corpora, `rest` of all others, and the share that may differ."""
    rows = ledger_rows(pipeline)
    ledger = latest.require(pipeline.store, "score_ledger")
    return judged(ledger, rows[0]["model_version"], lambda corpus: cuts.get(corpus, cuts.get("rest")))


def test_the_audit_weighs_every_rejected_pair_against_the_cut(scene):
    pipeline, _ = scene
    rows, (highest, allowed) = ledger_rows(pipeline), audited(pipeline, rest=np.inf)
    assert highest.wrong.value == 0.0
    assert highest.wrong.n > 0
    assert highest.passed
    assert allowed == ALLOWED
    all_wrong, _ = audited(pipeline, rest=-np.inf)
    share = 2 * sum(row["rejected"] for row in rows) / sum(row["pairs"] for row in rows)
    assert all_wrong.wrong.value == pytest.approx(share)
    assert audited(pipeline, cc12m=0.0) is None, "a corpus without a cut takes no part"


def test_the_claim_takes_the_cut_of_the_very_dataset_and_so_sees_a_larger_share_that_is_kept(scene):
    pipeline, _ = scene
    first = verdict(pipeline.must("refilter"))
    assert first.passed, "the first dataset after the cascade already has a verdict"
    assert first.metadata["audited"].value > 0
    assert first.metadata["allowed"].value == ALLOWED
    wrong = verdict(pipeline.run("refilter", keep_fraction="1"))
    assert not wrong.passed, "where all are kept, whoever was turned down would be kept"
    assert wrong.severity == dg.AssetCheckSeverity.ERROR
    assert "audited rejects reach the cut" in wrong.metadata["verdict"].value
    floor = verdict(pipeline.run("refilter", keep_fraction="1", policy={"reward_floor": 1e9}))
    assert floor.passed, "below the floor nobody would have been kept"


def test_under_another_promoted_model_the_cascade_is_not_applied(scene):
    pipeline, cheap = scene
    store = pipeline.store
    other, before = promoted.imported(store, Path(cheap)), decisions.current(store, "promoted_model").value
    for value in ({"manifest": other.manifest_key, **other.facts}, before):
        decisions.move(store, "promoted_model", lambda _now, value=value: value)
        shown = metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")
        ours = value is before
        assert ("it was planned for model" in shown["cascade"]) is not ours
        assert ("cascade_rejected" in shown) is ours


def test_it_is_turned_off_by_a_person_or_by_a_plan_that_says_not_to_use_one(scene):
    pipeline, cheap = scene
    shown = metadata_of(plan(pipeline, off=True, reason="enough"), "cascade_plan")
    assert shown["in_force"] == "none is in force"
    assert "audited_rejects_of_the_crawl" not in shown
    assert in_force.current(pipeline.store).value["why"] == "enough"
    plan(pipeline, cheap=cheap, adopt=True)
    assert in_force.current(pipeline.store).value["action"] == "adopt"
    plan(pipeline, cheap=cheap, adopt=True, bound=0.01)  # too few pairs to promise it
    assert in_force.current(pipeline.store).value["action"] == "off"
    assert "too few to promise" in in_force.current(pipeline.store).value["why"]
    assert "cascade_rejected" not in metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")
    plan(pipeline, cheap=cheap, adopt=True)
    again = metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")
    assert "every pair of this batch was scored before" in again["cascade"]
    assert again["scored"] == again["pairs"]


def test_turning_off_without_a_plan_fails_before_it_has_decided_anything(tmp_path):
    settings = load(home=prepare(tmp_path / "home"), device="cpu")
    pipeline = Pipeline(settings, build_defs(settings=settings), dg.DagsterInstance.ephemeral())
    decisions.decide(pipeline.store, "cascade", {"action": "adopt", "model_version": "m"}, after=0)
    result = plan(pipeline, off=True)
    assert "Materialise cascade_plan first" in "\n".join(failures(result))
    assert in_force.current(pipeline.store).version == 1


def test_a_plan_wants_a_cheap_model_that_is_not_the_promoted_one(scene):
    pipeline, cheap = scene
    version = promoted.promoted(pipeline.store).facts["model_version"]
    latest.point(promoted.promoted(pipeline.store))
    for config, said in (
        ({}, "expected a cheap model"),
        ({"cheap": version[:8]}, "expected another model than the promoted one"),
        ({"cheap": "ffffff"}, "exactly one of"),
        ({"cheap": cheap, "adopt": True, "off": True}, "expected adopt or off"),
    ):
        result = plan(pipeline, **config)
        assert not result.success
        assert said in "\n".join(failures(result))


def test_a_folder_whose_files_are_not_those_that_were_saved_is_no_cheap_model(crawl, tmp_path):
    home, cheap = crawl
    folder = shutil.copytree(cheap, tmp_path / "model")
    weights = next(folder.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(InputError, match="safetensors"):
        promoted.imported(LocalStore(home / "store"), folder)
