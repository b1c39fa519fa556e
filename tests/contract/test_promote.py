"""`compalign promote`: the gate, the rehearsal, the roll-back and the history, as people use them."""

import getpass
import os
import re
import shutil

import dagster as dg
import pytest

from compalign_dagster import artifacts, decisions, latest, parquet
from compalign_dagster.cli import main as front
from compalign_dagster.decisions import DecidedMeanwhileError
from compalign_dagster.errors import PromotionRefusedError
from compalign_dagster.reward import promoted
from compalign_dagster.store import LocalStore
from tests.support.colours import ColourReward, World, publish_annotations, registered, world

pytestmark = pytest.mark.slow
UNASKED = [("nothing", True, "a test moves the pointer past the gate")]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Judgements, and an indexed crawl."""
    made = world(tmp_path_factory.mktemp("world"))
    made.index()
    return made


@pytest.fixture
def here(template: World, tmp_path, monkeypatch) -> World:
    """A copy of it, which the command line finds."""
    registered(monkeypatch)
    shutil.copytree(template.home, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("COMPALIGN_HOME", str(tmp_path))
    monkeypatch.setenv("COMPALIGN_DEVICE", "cpu")
    settings = template.settings.model_copy(update={"home": tmp_path})
    annotations = artifacts.load(LocalStore(tmp_path / "store"), template.annotations.manifest_key)
    return World(tmp_path, template.data, annotations, settings)


@pytest.fixture
def promote(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = front.run(["promote", *arguments])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        said = capsys.readouterr()
        complaints = [line for line in said.err.splitlines() if line.startswith("compalign: ")]
        return code, said.out, "\n".join(complaints)

    return call


def in_force(here: World) -> dict | None:
    now = decisions.current(here.store, "promoted_model")
    return now.value if now else None


def test_a_good_model_is_promoted_with_its_figures_and_who_and_why(here, promote):
    model = here.train(ColourReward())
    code, out, err = promote("--reason", "it sees colours", "--by", "a curator")
    assert (code, err) == (0, "")
    assert "FAILS" not in out
    assert out.count("95 % interval") >= 10
    value = in_force(here)
    assert value["manifest"] == model.manifest_key
    assert value["model_version"] == model.facts["model_version"]
    assert value["data_version"] == model.data_version
    assert (value["by"], value["why"], value["action"]) == ("a curator", "it sees colours", "promote")
    assert "evidence" not in value["metrics"]
    assert {item["claim"] for item in value["claims"]} >= {"rewards compare across images", "rewards vary"}
    assert promoted.promoted(here.store).manifest_key == model.manifest_key


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (ColourReward(-1.0), "preference_accuracy"),
        (ColourReward(0.0), "shortcut check"),
        (ColourReward(1.0, offset=1.0), "of the separation is left"),
    ],
    ids=["likes what people do not", "does not look", "does not compare across images"],
)
def test_a_bad_model_is_refused_with_its_figures_and_nothing_moves(here, promote, model, why):
    here.train(model)
    code, out, err = promote("--reason", "I like it")
    assert code == 2
    assert "FAILS" in out
    assert why in err
    assert "\n" not in err
    assert in_force(here) is None


def test_a_second_model_must_beat_the_promoted_one_on_images_that_neither_learned_from(here, promote):
    here.train(ColourReward())
    assert promote("--reason", "first")[0] == 0
    first = in_force(here)
    here.train(ColourReward(0.9))
    code, _, err = promote("--reason", "second")
    assert code == 2
    assert f"Preference accuracy minus that of the promoted model {first['model_version'][:12]}" in err
    assert "+0.000, 95 % interval +0.000 to +0.000, n = 120" in err
    assert in_force(here) == first


def test_a_better_model_replaces_the_promoted_one(here, promote, monkeypatch):
    weak = here.train(ColourReward(0.0))
    # No gate would let it pass; a store from before the gate may hold such a model.
    promoted.promote(here.store, weak, UNASKED, promoted.Reason("x", "before there was a gate"), now=None)
    better = here.train(ColourReward())
    code, out, _ = promote("--reason", "better")
    assert code == 0, out
    against = in_force(here)["against"]
    assert against["model_version"] == weak.facts["model_version"]
    assert against["gain"]["low"] > 0
    assert against["gain"]["n"] == 120
    assert against["images"] == 40
    assert against["images_left_out"] == 0
    assert in_force(here)["manifest"] == better.manifest_key
    # The same bounds, were the comparison not made, would let anything pass that passes the rest.
    assert "agrees with people more than the promoted model" in out


def test_images_that_the_promoted_model_learned_from_are_left_out(here, promote):
    rows = here.data.images.to_pylist()
    swapped = [{**row, "split": {"test": "train", "train": "test"}.get(row["split"], row["split"])} for row in rows]
    tables = here.data.__class__(
        here.data.images.from_pylist(swapped, here.data.images.schema),
        here.data.captions, here.data.ranks, here.data.comparisons, here.data.crawl, here.data.shards,
    )  # fmt: skip
    other = publish_annotations(here.store, tables, here.home / "other", key="b")
    weak = here.train(ColourReward(0.0), annotations=other)
    promoted.promote(here.store, weak, UNASKED, promoted.Reason("x", "y"), now=None)
    here.train(ColourReward())
    code, _, err = promote("--reason", "better, but on images that the other has learned from")
    assert code == 2
    assert "No gain over the promoted model" in err
    assert "Preference accuracy" not in err


def test_the_rehearsal_shows_the_claims_and_the_shadow_run_and_decides_nothing(here, promote):
    here.train(ColourReward())
    before = sorted(item.key for item in here.store.list("decisions/"))
    code, out, _ = promote("--dry-run")
    assert code == 0
    assert out.count("holds") >= 10
    assert "no model is promoted yet" in out
    assert "a full re-score: 48 pairs x" in out
    assert in_force(here) is None
    added = set(item.key for item in here.store.list("decisions/")) - set(before)
    assert added == {"decisions/latest/shadow_report/00000001.json"}


def test_the_rehearsal_of_a_worse_model_says_what_would_leave_and_ends_as_a_refusal(here, promote):
    here.train(ColourReward())
    assert promote("--reason", "first")[0] == 0
    here.score()
    here.train(ColourReward(-1.0))
    code, out, err = promote("--dry-run")
    assert code == 2
    assert "FAILS" in out
    assert "every claim of the promotion gate" in err
    enters, leaves = (int(re.search(rf"{name} the kept set: (\d+)", out)[1]) for name in ("enters", "leaves"))
    assert enters == leaves > 0
    report = latest.require(here.store, "shadow_report")
    rows = parquet.read(report.fetch("sample.parquet")).to_pylist()
    assert len(rows) == 48
    assert sum(row["change"] == "enters" for row in rows) == enters
    assert report.has_view("page.html")
    assert report.has_view("preview.jpg")


def test_roll_back_is_one_command_without_a_gate_and_a_new_decision(here, promote):
    first = here.train(ColourReward(0.0))
    promoted.promote(here.store, first, UNASKED, promoted.Reason("x", "the first"), now=None)
    second = here.train(ColourReward())
    assert promote("--reason", "better")[0] == 0
    code, out, _ = promote("--roll-back")
    assert code == 0
    assert first.facts["model_version"][:12] in out
    value = in_force(here)
    assert value["manifest"] == first.manifest_key
    assert (value["action"], value["restores"], value["by"]) == ("roll back", 1, getpass.getuser())
    assert [model.manifest_key for model in promoted.promotions(here.store)] == [
        first.manifest_key, second.manifest_key,
    ]  # fmt: skip
    code, _, err = promote("--roll-back")
    assert code == 2
    assert "promoted before the one in use" in err, "there is nothing before the first"
    assert decisions.current(here.store, "promoted_model").version == 3


def test_dagster_is_told_of_a_promotion_and_a_roll_back_where_the_profile_has_an_instance(here, promote, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", os.environ.get("DAGSTER_HOME", ""))  # put back, and the one below, afterwards
    monkeypatch.setenv("GX_ANALYTICS_ENABLED", "false")
    first = here.train(ColourReward(0.0))
    promoted.promote(here.store, first, UNASKED, promoted.Reason("x", "the first"), now=None)
    second = here.train(ColourReward())
    here.settings.dagster_home.mkdir()
    assert promote("--reason", "better")[0] == 0
    assert promote("--roll-back", "--reason", "kept too many posters")[0] == 0
    with dg.DagsterInstance.get() as instance:
        told = instance.fetch_materializations(dg.AssetKey("promoted_model"), limit=9).records
    assert [event.asset_materialization.metadata["why"].value for event in told] == ["kept too many posters", "better"]
    versions = [event.asset_materialization.tags["dagster/data_version"] for event in told]
    assert versions == [first.data_version, second.data_version]


def test_a_decision_of_which_dagster_cannot_be_told_stands_and_says_so(here, monkeypatch, capfd):
    monkeypatch.setenv("DAGSTER_HOME", os.environ.get("DAGSTER_HOME", ""))
    model = here.train(ColourReward())
    (here.settings.dagster_home / "dagster.yaml").mkdir(parents=True)  # where the configuration belongs
    code = front.run(["promote", "--reason", "good"])
    assert code == 0
    assert "the decision stands, but Dagster was not told of it" in capfd.readouterr().err
    assert in_force(here)["manifest"] == model.manifest_key


def test_a_roll_back_to_a_model_of_another_format_is_refused_by_name(here, promote):
    """The planted bug: were the files not read here, the pointer would move and every scoring fail after it."""
    files = {"reward.json": b"{}", "w.safetensors": b"x"}
    facts = {"model_version": "ab" * 32, "metrics": {}, "device": "cpu"}
    old = artifacts.publish(
        here.store, "reward_model", "c" * 32, files, code_version=1, inputs=[], config={}, facts=facts
    )
    promoted.promote(here.store, old, UNASKED, promoted.Reason("x", "of the first release"), now=None)
    second = here.train(ColourReward())
    promoted.promote(here.store, second, UNASKED, promoted.Reason("x", "y"), now=promoted.in_force(here.store))
    code, _, err = promote("--roll-back")
    assert code == 2
    assert "model abababababababab, promoted before the one in use" in err
    assert "format 1" in err
    assert in_force(here)["manifest"] == second.manifest_key


def test_rolling_back_twice_goes_back_twice_and_promoting_starts_anew(here):
    models = [here.train(ColourReward(sees)) for sees in (0.7, 0.8, 0.9)]
    reason = promoted.Reason("x", "y")
    for model in models:
        promoted.promote(here.store, model, UNASKED, reason, now=promoted.in_force(here.store))
    assert promoted.roll_back(here.store, reason).value["manifest"] == models[1].manifest_key
    assert promoted.roll_back(here.store, reason).value["manifest"] == models[0].manifest_key
    promoted.promote(here.store, models[2], UNASKED, reason, now=promoted.in_force(here.store))
    assert promoted.roll_back(here.store, reason).value["manifest"] == models[0].manifest_key


def test_a_roll_back_to_a_model_whose_files_were_altered_is_refused(here, promote):
    first = here.train(ColourReward(0.5))
    promoted.promote(here.store, first, UNASKED, promoted.Reason("x", "y"), now=None)
    second = here.train(ColourReward())
    promoted.promote(here.store, second, UNASKED, promoted.Reason("x", "y"), now=promoted.in_force(here.store))
    path = here.home / "store" / first.file_key("w.safetensors")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, _, err = promote("--roll-back")
    assert code == 2
    assert "w.safetensors" in err
    assert in_force(here)["manifest"] == second.manifest_key


def test_a_model_whose_files_were_altered_in_the_store_is_not_promoted(here, promote):
    model = here.train(ColourReward())
    path = here.home / "store" / model.file_key("w.safetensors")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, _, err = promote("--reason", "hurry")
    assert code == 2
    assert "w.safetensors" in err
    assert in_force(here) is None


def test_the_history_lists_who_when_and_why_newest_first_and_cannot_steer_a_terminal(here, promote):
    assert promote("--history")[1] == "no model was promoted yet\n"
    first = here.train(ColourReward(0.0))
    value = {"manifest": first.manifest_key, "model_version": first.facts["model_version"]}
    decisions.decide(here.store, "promoted_model", value, after=0)  # as the first release wrote it
    here.train(ColourReward())
    assert promote("--reason", "better \x1b[2J than\nbefore", "--by", "me")[0] == 0
    assert promote("--roll-back", "--reason", "kept too many posters")[0] == 0
    code, out, _ = promote("--history")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    assert "roll back" in lines[0]
    assert lines[0].endswith(": kept too many posters")
    assert lines[1].endswith("by me: better ?[2J than before")
    assert lines[2].endswith("by unknown: no reason recorded")
    assert "\x1b" not in out


def test_an_older_model_is_promoted_by_the_beginning_of_its_version(here, promote):
    wanted = here.train(ColourReward()).facts["model_version"]
    here.train(ColourReward(-1.0))
    assert promote("--model", wanted[:8], "--reason", "the one before")[0] == 0
    assert in_force(here)["model_version"] == wanted
    for unknown in ("ffffffff", wanted[:3]):
        code, _, err = promote("--model", unknown, "--reason", "x")
        assert code == 2
        assert wanted[:12] in err, "what there is, is said"


def test_promoting_what_is_promoted_already_changes_nothing(here, promote):
    here.train(ColourReward())
    assert promote("--reason", "first")[0] == 0
    code, out, _ = promote("--reason", "again")
    assert code == 0
    assert out.startswith("already promoted: 1 ")
    assert decisions.current(here.store, "promoted_model").version == 1
    code, out, _ = promote("--dry-run")
    assert code == 0
    assert out.startswith("already promoted, nothing to rehearse: 1 ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--reason", "  "],
        ["--dry-run", "--roll-back"],
        ["--history", "--roll-back"],
        ["--roll-back", "--model", "ab"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(here, promote, arguments):
    here.train(ColourReward())
    code, _, err = promote(*arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert in_force(here) is None


def test_without_a_trained_model_it_says_what_to_do(here, promote):
    code, _, err = promote("--reason", "x")
    assert code == 2
    assert "Materialise reward_model first" in err


def test_a_decision_that_came_between_judging_and_deciding_wins(here):
    first, second = here.train(ColourReward()), here.train(ColourReward(0.5))
    reason, judged_under = promoted.Reason("x", "y"), promoted.in_force(here.store)
    promoted.promote(here.store, second, UNASKED, reason, now=judged_under)
    with pytest.raises(DecidedMeanwhileError):
        promoted.promote(here.store, first, UNASKED, reason, now=judged_under)


def test_a_promotion_without_any_claim_is_refused(here):
    model = here.train(ColourReward())
    with pytest.raises(PromotionRefusedError, match="The gate was not asked"):
        promoted.promote(here.store, model, [], promoted.Reason("x", "y"), now=None)


def test_who_decides_is_known_even_where_the_user_has_no_name(monkeypatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    for nobody in (None, "", " \n"):
        assert promoted.Reason.given(nobody, " for\n a reason ") == promoted.Reason(
            f"uid {os.getuid()}", "for a reason"
        )
