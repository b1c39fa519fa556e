"""The real gate in the graph: a bad model is refused, a good one passes, and people are on record."""

import dagster as dg
import pytest

from compalign_dagster import decisions, latest
from compalign_dagster.definitions import build_defs
from tests.support.colours import BATCH, ColourReward, World, registered, world
from tests.support.pipeline import Pipeline, failures, metadata_of

pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path, monkeypatch) -> World:
    registered(monkeypatch)
    made = world(tmp_path)
    made.index()
    return made


@pytest.fixture
def pipeline(here: World) -> Pipeline:
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("crawl_batch", [BATCH])
    return Pipeline(here.settings, build_defs(settings=here.settings), instance)


def run(pipeline: Pipeline, job: str, tags: dict | None = None, **config: object) -> dg.ExecuteInProcessResult:
    asset = {"shadow_candidate": "shadow_report"}.get(job, "promoted_model")
    run_config = {"ops": {asset: {"config": config}}} if config else None
    return pipeline.defs.resolve_job_def(job).execute_in_process(
        instance=pipeline.instance, run_config=run_config, tags=tags, raise_on_error=False
    )


def checks(pipeline: Pipeline) -> dict[str, dg.AssetCheckEvaluation]:
    """The checks of the newest reward model, by name."""
    names = ("would_pass_the_promotion_gate", "rewards_compare_across_images")
    wanted = [dg.AssetCheckKey(dg.AssetKey("reward_model"), name) for name in names]
    job = dg.define_asset_job("checks", dg.AssetSelection.checks(*wanted))
    defs = dg.Definitions.merge(pipeline.defs, dg.Definitions(jobs=[job]))
    result = defs.resolve_job_def("checks").execute_in_process(instance=pipeline.instance, raise_on_error=False)
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


def test_the_gate_refuses_a_bad_model_and_passes_a_good_one(here, pipeline):
    here.train(ColourReward(0.0))
    refused = run(pipeline, "promote_model", reason="I like it")
    assert not refused.success
    assert "every claim of the promotion gate" in "".join(failures(refused))
    assert decisions.current(here.store, "promoted_model") is None
    good = here.train(ColourReward())
    passed = run(pipeline, "promote_model", reason="it sees ![x](http://evil) | colours", by="a curator")
    assert passed.success, failures(passed)
    told = metadata_of(passed, "promoted_model")
    assert told["model_version"] == good.facts["model_version"]
    assert (told["by"], told["why"], told["promotion"]) == ("a curator", "it sees ![x](http://evil) | colours", 1)
    assert r"it sees !\[x\](http://evil) \| colours" in told["history"]
    assert "rewards compare across images" in told["claims"]
    assert "| 1 |" in told["history"] and "a curator" in told["history"]


def test_the_user_who_launched_the_run_is_recorded(here, pipeline):
    here.train(ColourReward())
    assert run(pipeline, "promote_model", tags={"user": "somebody@example.org"}).success
    value = decisions.current(here.store, "promoted_model").value
    assert (value["by"], value["why"]) == ("somebody@example.org", "no reason given")


def test_a_shadow_run_before_and_after_the_first_promotion_and_a_roll_back(here, pipeline):
    first = here.train(ColourReward())
    alone = run(pipeline, "shadow_candidate")
    assert alone.success, failures(alone)
    told = metadata_of(alone, "shadow_report")
    assert told["promoted"] == "none yet"
    assert "no model is promoted yet" in told["summary"]
    assert run(pipeline, "promote_model").success
    pipeline.must("score_batch", BATCH)
    pipeline.must("refilter")
    here.train(ColourReward(-1.0))
    beside = run(pipeline, "shadow_candidate", pairs=30)
    assert beside.success, failures(beside)
    told = metadata_of(beside, "shadow_report")
    assert told["promoted"] == first.facts["model_version"]
    assert told["dagster/row_count"] == 30
    assert told["kept_overlap"] < 0.9
    assert "page" in told
    again = run(pipeline, "shadow_candidate", pairs=30)
    assert metadata_of(again, "shadow_report")["reused"] is True
    artifact = latest.require(here.store, "shadow_report")
    assert artifact.facts["report"]["population"] == 48
    assert not run(pipeline, "promote_model").success
    assert not run(pipeline, "roll_back_model").success, "there is nothing before the first"
    both = run(pipeline, "promote_model", roll_back=True, model=first.facts["model_version"][:12])
    assert "roll_back, or a model to promote" in "".join(failures(both))
    assert decisions.current(here.store, "promoted_model").version == 1


def test_the_roll_back_job_moves_the_pointer_and_the_next_scores_are_of_the_model_before(here, pipeline):
    from compalign_dagster.reward import promoted

    models = [here.train(ColourReward(sees)) for sees in (0.5, 1.0)]
    for model in models:
        promoted.promote(
            here.store,
            model,
            [("nothing", True, "past the gate")],
            promoted.Reason("x", "y"),
            now=promoted.in_force(here.store),
        )
    pipeline.must("score_batch", BATCH)
    result = run(pipeline, "roll_back_model")
    assert result.success, failures(result)
    assert metadata_of(result, "promoted_model")["model_version"] == models[0].facts["model_version"]
    assert decisions.current(here.store, "promoted_model").value["why"] == "rolled back in the launchpad"
    pipeline.must("score_batch", BATCH)
    assert latest.require(here.store, "scored_shards", BATCH).facts["model_version"] == models[0].facts["model_version"]
    pipeline.must("refilter")
    assert latest.require(here.store, "filtered_dataset").facts["model_version"] == models[0].facts["model_version"]


@pytest.mark.parametrize(
    ("model", "passed", "severity"),
    [
        (ColourReward(), True, None),
        (ColourReward(1.0, offset=1.0), False, dg.AssetCheckSeverity.ERROR),
        (ColourReward(0.0), False, dg.AssetCheckSeverity.WARN),
    ],
    ids=["good", "an offset for each image", "sees nothing"],
)
def test_a_model_whose_rewards_do_not_compare_across_images_fails_a_blocking_check(
    here, pipeline, model, passed, severity
):
    metrics = here.train(model).facts["metrics"]
    found = checks(pipeline)
    check = found["rewards_compare_across_images"]
    assert check.passed == passed
    assert severity is None or check.severity == severity
    assert found["would_pass_the_promotion_gate"].passed == passed
    assert found["would_pass_the_promotion_gate"].severity == dg.AssetCheckSeverity.WARN
    if severity == dg.AssetCheckSeverity.ERROR:
        assert metrics["preference_accuracy"]["value"] == 1.0, "within images it is perfect"
        assert check.blocking
        assert "of the separation is left" in check.description


def test_the_planted_bug_of_looking_within_images_alone_would_pass_such_a_model(here):
    """Every comparison of people is decided as they did: only the cross-image figures tell."""
    good, spoiled = (here.train(ColourReward(1.0, offset=offset)).facts["metrics"] for offset in (0.0, 1.0))
    assert good["preference_accuracy"] == spoiled["preference_accuracy"]
    assert good["cross_image_auc"]["low"] > spoiled["cross_image_auc"]["high"]
