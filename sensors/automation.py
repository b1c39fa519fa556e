"""What runs by itself: new batches are indexed and scored, then the dataset is re-filtered.

Sensors register, automation requests. Signals are edges (a data version changed), so they are latched
until a run was requested: an edge seen while a dependency is still being made is not lost. A failed
run is requested once more and then left to people. Training, promotion and evaluation are never
started from here: a new model must not re-score a crawl unasked.
"""

from collections.abc import Iterable

import dagster as dg

from assets import keys

AC = dg.AutomationCondition
_INTERVAL_SECONDS = 30


def _on_new_data(upstream: dg.AssetKey, *, fan_in: bool = False) -> dg.AutomationCondition:
    """Run when the data version of `upstream` changed, or when this was never made.

    A fan-in over partitions starts although some of them are missing: the ledger says what it covers.
    """
    only = dg.AssetSelection.assets(upstream)
    changed = AC.any_deps_match(AC.data_version_changed()).allow(only)
    updated = changed.since(AC.newly_requested() | AC.initial_evaluation())
    wanted = updated | AC.newly_missing().since_last_handled() | AC.execution_failed().newly_true()
    ready = ~AC.any_deps_in_progress() & ~AC.in_progress() & AC.all_deps_blocking_checks_passed()
    if not fan_in:
        ready = ready & ~AC.any_deps_missing()
    return (wanted & ready).with_label(f"on_new_{upstream.to_user_string()}")


CONDITIONS: dict[dg.AssetKey, dg.AutomationCondition] = {
    keys.RAW_CRAWL: _on_new_data(keys.LANDED_SHARDS),
    keys.SCORED_SHARDS: _on_new_data(keys.RAW_CRAWL),
    keys.SCORE_LEDGER: _on_new_data(keys.SCORED_SHARDS, fan_in=True),
    keys.FILTERED_DATASET: _on_new_data(keys.SCORE_LEDGER),
}


def automated(
    assets: Iterable[dg.AssetsDefinition | dg.AssetSpec],
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The same assets with the conditions under which they run by themselves."""
    return list(
        dg.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=CONDITIONS.get(spec.key)), assets)
    )


automation = dg.AutomationConditionSensorDefinition(
    name="score_and_refilter",
    target=dg.AssetSelection.assets(*CONDITIONS),
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    run_tags={"compalign/started_by": "automation"},
    description="Indexes and scores new batches with the promoted model, then re-filters.",
)
