"""A cascade in the graph: planned, adopted, used, audited, turned off; and nothing of it before that."""

import shutil
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import torch

from assets.cascade_plan import _imported
from assets.checks import score_ledger as checks
from assets.cuts import Cuts, cuts_in_force
from assets.scored_shards import exact
from compalign_dagster import artifacts, decisions, latest, parquet
from compalign_dagster.definitions import build_defs
from compalign_dagster.errors import InputError
from compalign_dagster.reward import promoted
from compalign_dagster.reward.folder import save_model
from compalign_dagster.reward.model import backbone
from compalign_dagster.scoring import in_force
from compalign_dagster.settings import load
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import digest_json
from tests.support.pipeline import BATCH, Pipeline, failures, metadata_of
from tests.support.scoring import manifests, prepare
from tests.support.tiny_reward import tiny_config

ALLOWED = 0.3  # a sample of a hundred squares promises no less


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """Two indexed shards and a promoted model; a model folder that rewards alike and has another version."""
    torch.manual_seed(1)
    home = prepare(tmp_path_factory.mktemp("cascade") / "home", pairs=60)
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
    instance.add_dynamic_partitions("crawl_batch", [BATCH])
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
    shown = metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")
    assert shown["cascade"] == "none is in force"
    assert "cascade_passes" not in shown
    result = fold(pipeline)
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
    assert len(manifests(pipeline.settings.home)) == 2 * before, "full scores stay under their own work keys"
    assert metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")["reused"]


def ledger_rows(pipeline: Pipeline) -> list[dict]:
    assert fold(pipeline).success
    return parquet.read(latest.require(pipeline.store, "score_ledger").fetch("ledger.parquet")).to_pylist()


def test_the_ledger_names_what_was_turned_down(scene):
    pipeline, _ = scene
    for row in ledger_rows(pipeline):
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


def judged(pipeline: Pipeline, cut: float, bound: float = ALLOWED):
    rows = ledger_rows(pipeline)
    ledger = latest.require(pipeline.store, "score_ledger")
    return checks.judged(ledger, rows, Cuts(rows[0]["model_version"], {}, {"*": cut}), bound)


def test_the_audit_weighs_every_rejected_pair_against_the_cut(scene):
    pipeline, _ = scene
    rows, highest = ledger_rows(pipeline), judged(pipeline, np.inf)
    assert highest.wrong.value == 0.0
    assert highest.wrong.n > 0
    assert highest.passed
    all_wrong = judged(pipeline, -np.inf)
    share = 2 * sum(row["rejected"] for row in rows) / sum(row["pairs"] for row in rows)
    assert all_wrong.wrong.value == pytest.approx(share)
    assert not judged(pipeline, -np.inf, bound=0.1).passed
    other = checks.judged(latest.require(pipeline.store, "score_ledger"), rows, Cuts("m", {}, {"cc12m": 0.0}), ALLOWED)
    assert other.reason == "nothing was rejected", "a corpus without a cut takes no part"


def test_the_claim_takes_the_cut_of_the_current_dataset_and_fails_when_rejects_reach_it(scene):
    pipeline, _ = scene
    (row, *_) = ledger_rows(pipeline)
    ledger = latest.require(pipeline.store, "score_ledger")

    def under(reward: float | None, short: bool = False) -> dg.AssetCheckResult:
        cut = {"budget": "*", "cut": reward, "short": short}
        policy = {"keep_fraction": "0.3"}
        facts = {"model_version": row["model_version"], "policy": policy, "budgets": [cut]}
        key = digest_json([reward, short])[:32]
        dataset = artifacts.publish(
            pipeline.store, "filtered_dataset", key, {}, code_version=1, inputs=[], config={}, facts=facts
        )
        value = {"manifest": dataset.manifest_key, "data_version": dataset.data_version, "policy": 9, "ledger": 9}
        decisions.move(pipeline.store, "current", lambda _now: value)
        return checks.cascade_changes_few_decisions(ledger)

    assert under(1e9).passed
    assert cuts_in_force(pipeline.store).of("web") == 1e9
    assert under(None).passed
    wrong = under(-1e9)
    assert not wrong.passed
    assert wrong.severity == dg.AssetCheckSeverity.ERROR
    assert "audited rejects reach the cut" in wrong.metadata["verdict"].value
    assert not under(1e9, short=True).passed, "where all are kept, whoever was turned down would be kept"
    assert under(1e9).passed


def test_under_another_promoted_model_the_cascade_is_not_applied(scene):
    pipeline, cheap = scene
    store = pipeline.store
    other, before = _imported(store, Path(cheap)), decisions.current(store, "promoted_model").value
    for value in ({"manifest": other.manifest_key, **other.facts}, before):
        decisions.move(store, "promoted_model", lambda _now, value=value: value)
        shown = metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")
        ours = value is before
        assert ("it was planned for model" in shown["cascade"]) is not ours
        assert ("cascade_rejected" in shown) is ours


def test_it_is_turned_off_by_a_person_or_by_a_plan_that_says_not_to_use_one(scene):
    pipeline, cheap = scene
    assert metadata_of(plan(pipeline, off=True, reason="enough"), "cascade_plan")["in_force"] == "none is in force"
    assert in_force.current(pipeline.store).value["why"] == "enough"
    plan(pipeline, cheap=cheap, adopt=True)
    assert in_force.current(pipeline.store).value["action"] == "adopt"
    plan(pipeline, cheap=cheap, adopt=True, bound=0.01)  # too few pairs to promise it
    assert in_force.current(pipeline.store).value["action"] == "off"
    assert "too few to promise" in in_force.current(pipeline.store).value["why"]
    assert "cascade_rejected" not in metadata_of(pipeline.must("score_batch", BATCH), "scored_shards")


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
        _imported(LocalStore(home / "store"), folder)
