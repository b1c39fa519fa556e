"""The asset over a small store that was scored without a model: trials, checks, and what Dagster is told."""

import shutil
from dataclasses import replace

import dagster as dg
import numpy as np
import polars as pl
import pytest

from assets import filtered_dataset as asset
from assets.checks import filtered_dataset as checks
from assets.filtered_dataset import SelectionConfig, unaccounted
from assets.shadow_report import _fractions
from compalign_dagster import artifacts
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import indexed_shards
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.selection import current, fairness, in_force
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.version import Version
from compalign_dagster.versions import digest_json
from tests.support import small_version
from tests.support.small_version import small_store

pytestmark = [pytest.mark.slow]

_EXACT = "exactly_k_are_kept_and_every_other_pair_has_a_reason"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("small"), pairs=30)


def materialise(small, **config) -> dg.MaterializeResult:
    return asset.filtered_dataset(SelectionConfig(**config), small.storage, small.settings)


def values(result: dg.MaterializeResult) -> dict:
    return {name: getattr(value, "value", value) for name, value in result.metadata.items()}


@pytest.fixture(scope="module")
def first(small) -> dg.MaterializeResult:
    return materialise(small)


def test_all_checks_pass_and_current_moves(small, first):
    assert all(result.passed for result in first.check_results), [result.metadata for result in first.check_results]
    assert {result.check_name for result in first.check_results} >= {_EXACT, "dataset_meets_expectations"}
    assert current.read(small.store).work_key == values(first)["work_key"]


def test_the_event_names_columns_and_where_each_comes_from(first):
    told = values(first)
    columns = {column.name for column in told["dagster/column_schema"].columns}
    lineage = told["dagster/column_lineage"].deps_by_column
    assert lineage.keys() == columns
    assert lineage["reward"] == [dg.TableColumnDep(dg.AssetKey("scored_shards"), "reward")]
    assert lineage["width"] == [dg.TableColumnDep(dg.AssetKey("raw_crawl"), "width")]


def test_the_event_has_inputs_with_their_versions_links_and_code_that_reads_the_pairs(small, first):
    told = values(first)
    kinds = [entry["kind"] for entry in told["inputs"]]
    assert kinds == ["score_ledger", "ranked_pairs", "ranked_pairs"]
    assert all(len(entry["data_version"]) == 64 for entry in told["inputs"])
    name = told["work_key"][:12]
    assert f"/browse/{name}/below_cut" in told["dropped by reason"]
    for label, view in (("page", "page.html"), ("what if", "what_if.html"), ("audit", "audit.html")):
        assert told[label].startswith("http://127.0.0.1:") and told[label].endswith(f"/{view}")
    lines = told["code"].splitlines()[1:-1]
    names: dict = {}
    exec("\n".join(line.replace("for sample in pairs: ...", "found = list(pairs)") for line in lines), names)
    assert len(names["found"]) == told["kept"]


def test_asking_again_reports_the_same_and_makes_nothing(small, first):
    again = materialise(small)
    assert values(again) | {"reused": False} == values(first)
    assert values(again)["reused"] is True


def test_a_trial_of_any_field_makes_no_new_list_for_a_new_cut_and_leaves_current_alone(small, first):
    before = current.read(small.store).manifest_key
    told = values(materialise(small, keep_fraction="0.1", policy={"most_per_domain": 20}))
    assert (told["trial"], told["current"]) == (True, False)
    assert (told["ranked lists made"], told["ranked lists used again"]) == (0, 2)
    assert told["policy"]["keep_fraction"] == "0.1" and told["policy"]["most_per_domain"] == 20
    assert current.read(small.store).manifest_key == before


def test_a_later_version_has_a_page_of_what_changes_from_the_current_one(small, first):
    assert "diff" not in values(first)
    told = values(materialise(small, keep_fraction="0.15"))
    assert told["diff"].endswith("/diff.html")
    made = artifacts.load(small.store, f"filtered_dataset/{told['work_key']}/manifest.json")
    page = made.fetch("diff.html").read_text()
    assert f"{values(first)['work_key'][:12]} → {told['work_key'][:12]}" in page
    assert f"/pair/{told['work_key'][:12]}/" in page or f"/pair/{values(first)['work_key'][:12]}/" in page
    assert "diff.html" not in made.names()
    without = digest_json({name: made.manifest["files"][name]["sha256"] for name in made.names()})
    assert made.data_version == without


def test_a_change_that_takes_long_to_draw_or_a_damaged_version_before_costs_the_page_alone(
    small, first, tmp_path, monkeypatch
):
    copy = replace(small, home=shutil.copytree(small.home, tmp_path / "home"))
    with monkeypatch.context() as patched:
        patched.setattr(asset, "_MOST_ROWS_COMPARED", 0)
        assert "diff" not in values(materialise(copy, keep_fraction="0.12"))
    now = current.read(copy.store)
    copy.store.path(now.file_key("cuts.parquet")).unlink()
    told = values(materialise(copy, keep_fraction="0.13"))
    assert "diff" not in told and told["kept"] > 0


def test_a_count_takes_the_place_of_a_fraction_in_a_trial_and_is_kept_exactly(small, first):
    told = values(materialise(small, policy={"keep_count": 17}))
    assert told["kept"] == 17
    assert told["policy"]["keep_fraction"] is None


def test_a_trial_of_soft_sampling_keeps_the_count_of_what_was_drawn(small, first):
    sampling = {"floor": -1.0, "full": 2.0, "seed": 7}
    told = values(materialise(small, policy={"keep_count": 17, "sampling": sampling}))
    assert (told["kept"], told["policy"]["sampling"], told["trial"]) == (17, sampling, True)
    assert "not_sampled" in told["dropped by reason"]


def test_fractions_of_nothing_and_of_all_are_versions_like_others(small, first):
    for fraction, reasons in (("0", {"no_budget"}), ("1", set())):
        result = materialise(small, keep_fraction=fraction)
        told = values(result)
        assert all(check.passed for check in result.check_results), [check.metadata for check in result.check_results]
        dataset = Version.open(_newest(small))
        assert set(dataset.facts["dropped_by_reason"]) == reasons
        assert told["kept"] == (0 if fraction == "0" else told["pairs"] - told["quarantined"])


def test_a_crawl_of_which_no_pair_was_scored_stops_with_the_remedy(tmp_path, monkeypatch):
    made_up = small_version.figures
    monkeypatch.setattr(small_version, "figures", lambda pairs, seed: np.full_like(made_up(pairs, seed), np.nan))
    with pytest.raises(CompalignError, match="none of them scored"):
        materialise(small_store(tmp_path, batches=1, pairs=6))


def test_rules_that_refuse_every_pair_make_an_empty_version_that_passes(small, first):
    result = materialise(small, policy={"reward_floor": 1000.0})
    assert all(check.passed for check in result.check_results)
    assert values(result)["kept"] == 0


def test_an_unknown_field_of_a_trial_is_refused_by_name(small, first):
    with pytest.raises(InputError, match="most_per_host"):
        materialise(small, policy={"most_per_host": 1})


def test_an_adopted_policy_is_in_force_with_its_reason_and_moves_current(small, first):
    result = materialise(small, keep_fraction="0.25", adopt=True, why="fewer is enough")
    assert values(result)["current"] is True
    now = in_force.history(small.store)[-1]
    assert (str(now.policy.keep_fraction), now.why) == ("0.25", "fewer is enough")
    materialise(small, keep_fraction="0.3", adopt=True)


def _newest(small) -> Artifact:
    from compalign_dagster import latest

    return latest.require(small.store, "filtered_dataset")


@pytest.mark.parametrize("fact", ["kept", "dropped", "pairs", "quarantined"])
def test_the_planted_bug_of_a_count_that_is_off_by_one_turns_the_exact_claim_red(small, first, fact):
    facts = current.read(small.store).facts
    policy = Policy.model_validate(facts["policy"])
    assert not unaccounted(facts, policy)
    assert unaccounted({**facts, fact: facts[fact] + 1}, policy)


@pytest.mark.parametrize("change", [{"k": 3}, {"kept": 3}, {"n": 1}])
def test_the_planted_bug_of_a_budget_that_keeps_another_number_turns_the_exact_claim_red(small, first, change):
    facts = current.read(small.store).facts
    budget = facts["budgets"][0] | change
    assert unaccounted({**facts, "budgets": [budget]}, Policy.model_validate(facts["policy"]))


def test_a_group_that_is_removed_beyond_the_bound_warns_with_figures_and_holds_nothing_back(small, first, monkeypatch):
    artifact = current.read(small.store)
    monkeypatch.setattr(fairness, "LEAST_EXPECTED", 1)
    warned = checks.groups_are_kept_alike(artifact, 1.0)
    assert (warned.passed, warned.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "candidates kept" in warned.description
    assert checks.groups_are_kept_alike(artifact, 0.0).passed
    asked_more = small.settings.model_copy(update={"least_group_share": 1.0})
    result = asset.filtered_dataset(SelectionConfig(), small.storage, asked_more)
    assert not all(check.passed for check in result.check_results)
    assert values(result)["current"] is True


@pytest.mark.parametrize("bug", ["taken", "reason", "twice"])
def test_the_planted_bug_of_a_wrong_decision_turns_the_expectations_red(small, first, monkeypatch, bug):
    artifact = current.read(small.store)
    opened = Version.open

    def planted(_: Artifact) -> Version:
        version = opened(artifact)
        if bug == "taken":  # one list gives a row more and another one less than lies above the cut
            change = pl.Series([5, -5] + [0] * (version.lists.height - 2))
            return replace(version, lists=version.lists.with_columns(taken=pl.col("taken") + change))
        if bug == "reason":
            row = version.decided(version.batches()[0]).filter(pl.col("reason").is_null()).head(1)
            capped = row.select("row", *version.capped.columns[2:8]).with_columns(
                batch=pl.lit(version.batches()[0]), reason=pl.lit("no such reason")
            )
            return replace(version, capped=capped.select(version.capped.columns))
        return replace(version, lists=pl.concat([version.lists, version.lists.head(1)]))

    monkeypatch.setattr(checks.Version, "open", planted)
    assert not checks.dataset_meets_expectations(artifact).passed


def test_a_shadow_run_under_a_policy_of_counts_compares_the_share_that_they_are(small):
    shards = indexed_shards(small.store)
    web = sum(item.pairs for item in shards if item.shard.startswith("web/"))
    shop = sum(item.pairs for item in shards) - web
    found = _fractions(Policy(keep_count=10, per_corpus={"web": "0.2"}, count_per_corpus={"gone": 5}), shards)
    assert found == {"*": 10 / shop, "web": 0.2, "gone": 0.0}
