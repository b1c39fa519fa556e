"""What runs by itself: new batches are indexed and scored, then the dataset is re-filtered.

Sensors register, automation requests. Each asset follows its one upstream: arrival, index, score, ledger,
dataset. The dataset waits until the ledger has been quiet for a while. A failed run is requested once
more and then left to people, and holds back its own batch alone. Training, promotion and evaluation are
never started from here: a new model must not re-score a crawl unasked.
"""

import warnings
from collections.abc import Iterable

import dagster as dg

from assets import keys
from compalign_dagster.settings import Settings
from sensors.due import Due

# The daemon knows only Dagster's own conditions; that the code server evaluates ours is a beta parameter.
warnings.filterwarnings("ignore", message=".*use_user_code_server.*", category=dg.BetaWarning)

AC = dg.AutomationCondition
FOLLOWS = {
    keys.RAW_CRAWL: keys.LANDED_SHARDS,
    keys.SCORED_SHARDS: keys.RAW_CRAWL,
    keys.SCORE_LEDGER: keys.SCORED_SHARDS,
    keys.FILTERED_DATASET: keys.SCORE_LEDGER,
}
_INTERVAL_SECONDS = 15


def conditions(settings: Settings) -> dict[dg.AssetKey, dg.AutomationCondition]:
    """The condition of each asset that runs by itself."""
    return {key: _follows(key, upstream, settings) for key, upstream in FOLLOWS.items()}


def _follows(key: dg.AssetKey, upstream: dg.AssetKey, settings: Settings) -> dg.AutomationCondition:
    due = Due(upstream, quiet_seconds=settings.refilter_wait_seconds if key == keys.FILTERED_DATASET else 0)
    ready: dg.AutomationCondition = ~AC.any_deps_missing() & ~AC.any_deps_in_progress()
    if key == keys.SCORE_LEDGER:
        # It says what it covers: neither batches that are missing nor those being scored hold it back.
        ready = AC.asset_matches(upstream, ~AC.missing())
    return (due & ready & AC.all_deps_blocking_checks_passed()).with_label(f"follows_{upstream.to_user_string()}")


def automated(
    assets: Iterable[dg.AssetsDefinition | dg.AssetSpec], settings: Settings
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The same assets with the conditions under which they run by themselves."""
    by_key = conditions(settings)
    return list(
        dg.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=by_key.get(spec.key)), assets)
    )


automation = dg.AutomationConditionSensorDefinition(
    name="score_and_refilter",
    target=dg.AssetSelection.assets(*FOLLOWS),
    minimum_interval_seconds=_INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    use_user_code_server=True,
    run_tags={"compalign/started_by": "automation"},
    description="Indexes and scores new batches with the promoted model, then re-filters.",
)
