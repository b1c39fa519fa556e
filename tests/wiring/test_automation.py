"""What automation requests, tick by tick. Planted conditions show that the same scenes catch a weaker one."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from assets import keys
from compalign_dagster import decisions
from compalign_dagster.definitions import build_defs
from compalign_dagster.selection import current
from compalign_dagster.settings import Settings, load
from sensors import automation
from tests.support.pipeline import BATCH, Pipeline, small_pipeline
from tests.support.ticks import Reports, Request, Ticks

pytestmark = pytest.mark.slow

AC = dg.AutomationCondition
WAIT = 60
LEDGER, DATASET = ("score_ledger", None), ("filtered_dataset", None)


def raw(batch: str) -> Request:
    return ("raw_crawl", batch)


def scored(batch: str) -> Request:
    return ("scored_shards", batch)


@dataclass
class Scene(Reports, Ticks):
    """Ticks over an instance of which every run is a report."""

    def work(self, ticks: int = 8, seconds: float = 30) -> list[set[Request]]:
        """Tick and let everything succeed."""
        history = []
        for _ in range(ticks):
            history.append(self.tick(seconds))
            self.do(history[-1])
        return history

    def settled(self, *batches: str) -> "Scene":
        """Everything is made and quiet."""
        self.tick()
        self.promote("1")
        self.land(batches)
        self.work()
        assert self.tick() == set()
        return self


def scene(home: Path) -> Scene:
    settings: Settings = load(home=home, refilter_wait_seconds=WAIT)
    return Scene(defs=build_defs(settings=settings), instance=dg.DagsterInstance.ephemeral())


def plain_dagster(_: Settings) -> dict[dg.AssetKey, AC]:
    """The planted bug: the same graph with Dagster's own latch and failure edge."""
    found = {}
    for key, upstream in automation.FOLLOWS.items():
        changed = AC.asset_matches(upstream, AC.data_version_changed())
        wanted = changed.since(AC.newly_requested() | AC.initial_evaluation())
        wanted = wanted | AC.newly_missing().since_last_handled() | AC.execution_failed().newly_true()
        ready = ~AC.in_progress() & ~AC.any_deps_in_progress()
        found[key] = wanted & (ready if key == keys.SCORE_LEDGER else ready & ~AC.any_deps_missing())
    return found


@pytest.fixture
def planted(monkeypatch, tmp_path) -> Scene:
    monkeypatch.setattr(automation, "conditions", plain_dagster)
    return scene(tmp_path)


@pytest.fixture
def world(tmp_path) -> Scene:
    return scene(tmp_path)


def test_a_landed_batch_is_indexed_and_scored_in_one_run_then_folded_then_filtered_and_then_all_is_quiet(world):
    world.tick()
    world.promote("1")
    world.land(["batch-00001"])
    history = [requested for requested in world.work() if requested]
    assert history[0] == {raw("batch-00001"), scored("batch-00001")}
    assert set().union(*history[1:]) == {LEDGER, DATASET}


def test_what_landed_before_the_first_tick_ever_is_not_forgotten(world):
    world.promote("1")
    world.land(["batch-00001"])
    assert world.tick() == {raw("batch-00001"), scored("batch-00001")}


def test_before_the_first_promotion_batches_are_indexed_and_wait_to_be_scored(world):
    world.land(["batch-00001"])
    assert set().union(*world.work()) == {raw("batch-00001")}
    world.promote("1")
    assert scored("batch-00001") in world.tick()


def test_a_later_promotion_or_training_starts_nothing(world):
    world.settled("batch-00001")
    world.promote("2")
    world.instance.report_runless_asset_event(
        dg.AssetMaterialization(keys.REWARD_MODEL, tags={"dagster/data_version": "another"})
    )
    assert world.work() == [set()] * 8


def test_a_batch_that_joins_is_scored_alone(world):
    world.settled("batch-00001")
    world.land(["batch-00002"])
    assert world.tick() == {raw("batch-00002"), scored("batch-00002")}


def test_the_same_bytes_again_keep_everything_quiet(world):
    world.settled("batch-00001")
    for request in (raw("batch-00001"), scored("batch-00001"), LEDGER):
        world.do([request])
    assert world.work() == [set()] * 8


def ledger_after_a_score_that_comes_during_its_run(world: Scene) -> bool:
    world.settled("batch-00001", "batch-00002")
    world.do([scored("batch-00001")], "2")
    assert LEDGER in world.tick()
    world.start(*LEDGER)
    world.tick()
    world.do([scored("batch-00002")], "2")
    for _ in range(3):
        assert LEDGER not in world.tick()
    world.end(*LEDGER, version="2")
    return any(LEDGER in world.tick() for _ in range(3))


def ledger_after_a_score_that_comes_before_the_next_tick(world: Scene) -> bool:
    world.settled("batch-00001", "batch-00002")
    world.do([scored("batch-00001")], "2")
    assert LEDGER in world.tick()
    world.do([LEDGER], "2")
    world.do([scored("batch-00002")], "2")
    return any(LEDGER in world.tick() for _ in range(3))


def test_scores_that_come_while_the_ledger_is_folded_reach_it_afterwards(world):
    assert ledger_after_a_score_that_comes_during_its_run(world)


def test_scores_that_come_between_a_request_and_the_next_tick_reach_the_ledger(world):
    assert ledger_after_a_score_that_comes_before_the_next_tick(world)


def test_the_planted_bug_a_latch_that_is_reset_after_it_is_set_turns_this_red(planted):
    assert not ledger_after_a_score_that_comes_before_the_next_tick(planted)


def requests_after_a_long_run(world: Scene) -> set[Request]:
    world.settled("batch-00001")
    world.land(["batch-00002"])
    for name, partition in sorted(world.tick()):
        world.start(name, partition)
    world.tick()
    world.end(*raw("batch-00002"), version="1")
    world.tick()
    world.end(*scored("batch-00002"), version="1")
    return {request for _ in range(3) for request in world.tick()}


def test_a_run_that_outlasts_a_tick_is_not_asked_for_again_when_it_ends(world):
    assert requests_after_a_long_run(world) == {LEDGER}


def test_the_planted_bug_an_edge_of_the_own_run_turns_this_red(planted):
    assert scored("batch-00002") in requests_after_a_long_run(planted)


def test_a_dataset_that_a_person_filtered_again_is_not_filtered_once_more(world):
    world.settled("batch-00001")
    world.do([LEDGER, DATASET], "2")
    assert world.work() == [set()] * 8


def seconds_until_refiltered(world: Scene, changes: int, every: float = 30) -> float | None:
    """Change the ledger again and again; how long after the first change the dataset is asked for."""
    world.settled("batch-00001")
    started = None
    for at in range(changes + 40):
        if at < changes:
            world.do([LEDGER], f"change {at}")
        requested = world.tick(every)
        started = started or world.now
        if DATASET in requested:
            return (world.now - started).total_seconds()
    return None


def test_the_dataset_waits_until_the_ledger_was_quiet(world):
    assert seconds_until_refiltered(world, changes=1) == WAIT


def test_each_change_starts_the_wait_again(world):
    assert seconds_until_refiltered(world, changes=4) == 3 * 30 + WAIT


def test_a_steady_stream_does_not_starve_the_dataset(world):
    assert seconds_until_refiltered(world, changes=100) == 5 * WAIT


def test_the_planted_bug_no_wait_turns_these_red(planted):
    assert seconds_until_refiltered(planted, changes=4) == 0


def test_a_clock_that_is_set_back_holds_nothing_for_ever(world):
    world.settled("batch-00001")
    world.do([LEDGER], "2")
    world.tick()
    world.now -= timedelta(days=30)
    assert DATASET in world.tick()


def test_a_failed_filtering_is_asked_for_again_without_the_wait(world):
    world.settled("batch-00001")
    world.do([LEDGER], "2")
    while DATASET not in world.tick():
        pass
    world.do([DATASET], failing=[DATASET])
    assert world.tick() == {DATASET}


def runs_of_what_always_fails(world: Scene, request: Request, *, ticks: int = 8) -> int:
    """Every run of it is seen under way by two ticks, as real runs are, and then fails."""
    asked = 0
    for _ in range(ticks):
        if request in world.tick():
            asked += 1
            world.start(*request)
            world.tick()
            world.tick()
            world.end(*request)
    return asked


def runs_of_a_ledger_that_always_fails(world: Scene) -> int:
    world.settled("batch-00001")
    world.do([scored("batch-00001")], "2")
    return runs_of_what_always_fails(world, LEDGER)


def test_a_failed_run_is_asked_for_once_more_and_then_left_to_people(world):
    assert runs_of_a_ledger_that_always_fails(world) == 2


def test_the_planted_bug_a_retry_for_each_failure_turns_this_red(planted):
    assert runs_of_a_ledger_that_always_fails(planted) > 2


def test_a_failed_batch_is_asked_for_once_more_and_new_data_earns_it_another_run_and_another_retry(world):
    world.settled("batch-00001")
    world.land(["batch-00002"])
    assert runs_of_what_always_fails(world, raw("batch-00002")) == 2
    world.land_again("batch-00002", "2")
    assert runs_of_what_always_fails(world, raw("batch-00002")) == 2


def test_a_failure_between_two_ticks_is_retried_once_too(world):
    world.settled("batch-00001")
    world.land(["batch-00002"])
    asked = 0
    for _ in range(8):
        requested = world.tick()
        asked += raw("batch-00002") in requested
        world.do(requested, failing=[raw("batch-00002")])
    assert asked == 2


def test_a_batch_mended_by_hand_goes_on_by_itself(world):
    world.settled("batch-00001")
    world.land(["batch-00002"])
    runs_of_what_always_fails(world, raw("batch-00002"))
    world.do([raw("batch-00002")])
    first, *later = world.work()
    assert first == {scored("batch-00002")}
    assert LEDGER in set().union(*later)


def test_a_bad_batch_holds_back_only_itself(world):
    world.settled("batch-00001")
    before = world.versions[DATASET]
    world.land(["batch-00002", "batch-00003"])
    history = []
    for at in range(10):
        history.append(world.tick())
        world.do(history[-1], version=f"good {at}", failing=[raw("batch-00002")])
    assert sum(raw("batch-00002") in requested for requested in history) == 2
    assert sum(scored("batch-00003") in requested for requested in history) == 1
    assert scored("batch-00002") not in world.versions
    assert world.versions[DATASET] != before


def test_a_batch_whose_blocking_check_fails_is_not_scored_and_the_others_are(world):
    world.settled("batch-00001")
    world.land(["batch-00002"])
    world.tick()
    world.start(*raw("batch-00002"))
    world.end(*raw("batch-00002"), version="1", check_passed=False)
    world.land(["batch-00003"])
    history = set().union(*world.work())
    assert scored("batch-00003") in history
    assert LEDGER in history
    assert scored("batch-00002") not in history


def test_a_tick_killed_before_its_cursor_is_written_asks_for_the_same_again(world):
    world.promote("1")
    world.land(["batch-00001"])
    lost = world.tick(save=False)
    assert world.tick() == lost
    world.do(lost)
    lost = world.tick(save=False)
    assert LEDGER in lost
    world.do(lost)  # its runs were started all the same
    assert scored("batch-00001") not in world.tick(), "what was made meanwhile is seen"


def test_a_cursor_that_is_lost_asks_for_no_batch_again(world):
    world.settled("batch-00001", "batch-00002")
    world.cursor = None
    assert world.work() == [set()] * 8


def test_a_cursor_of_another_release_is_an_empty_one():
    from sensors.due import Memory

    for text in ("[]", "nonsense", '{"pending": 3}', '{"pending": {"batch-00001": 3}}', None):
        assert Memory.parse(text) == Memory()


def test_the_sensor_itself_evaluates_the_conditions_and_takes_its_cursor_back(world):
    world.promote("1")
    world.land(["batch-00001"])

    def tick(cursor: str | None):
        context = dg.build_sensor_context(
            instance_ref=None, instance=world.instance, cursor=cursor, definitions=world.defs
        )
        return automation.automation.evaluate_tick(context)

    first = tick(None)
    (request,) = first.run_requests
    assert set(request.asset_selection) == {keys.RAW_CRAWL, keys.SCORED_SHARDS}
    assert request.partition_key == "batch-00001"
    assert tick(None).run_requests, "a cursor that was not saved asks again"
    assert not tick(first.cursor).run_requests


def test_with_real_runs_a_batch_reaches_the_dataset_and_a_replayed_tick_publishes_nothing_twice(tmp_path):
    settings = load(
        home=tmp_path, refilter_wait_seconds=WAIT, pretrain_steps=2, train_steps=4, batch_images=8,
        min_cross_image_auc=0.5,
    )  # fmt: skip
    pipeline = small_pipeline(settings, pairs=80, judged=40)
    ticks = Ticks(pipeline.defs, pipeline.instance)
    pipeline.must("land_batch")
    indexed = ticks.tick()
    assert indexed == {raw(BATCH)}
    assert ticks.execute(indexed) == {BATCH: True}
    pipeline.learn()

    made: list[set[Request]] = []
    for _ in range(4):
        lost = ticks.tick(save=False)  # the daemon dies before it writes its cursor, and its runs go on
        assert all(ticks.execute(lost).values())
        before = _published(pipeline)
        assert all(ticks.execute(lost).values()), "the same requests once more"
        assert _published(pipeline) == before
        made.append(ticks.tick())
        assert all(ticks.execute(made[-1]).values())
    assert current.read(pipeline.store) is not None
    assert ticks.until_quiet()[-2:] == [set(), set()]
    versions = [decision.version for decision in decisions.history(pipeline.store, "current")]
    assert versions == [1]

    shards = sorted((tmp_path / "landing").rglob("*.tar"))
    (tmp_path / "landing" / "sample" / "90000.tar").write_bytes(shards[0].read_bytes())
    pipeline.must("land_batch")
    history = [request for requested in ticks.until_quiet(seconds=WAIT) for request in requested]
    assert sorted(history, key=str) == sorted([raw("batch-00002"), scored("batch-00002"), LEDGER, DATASET], key=str)


def _published(pipeline: Pipeline) -> set[str]:
    return {item.key for item in pipeline.store.list()}
