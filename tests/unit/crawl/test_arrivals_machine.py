"""Whatever happens to a landing folder and to its ticks: the log ends up saying what lies there, once."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from compalign_dagster.crawl import arrivals, look
from compalign_dagster.crawl.batches import BatchSize, read_log, seal
from compalign_dagster.crawl.landed import Complete
from compalign_dagster.crawl.look import Rules
from compalign_dagster.crawl.shards import is_shard
from compalign_dagster.store import LocalStore
from tests.support import arrivals as support
from tests.support.arrivals import STEPS, Arrivals

pytestmark = pytest.mark.slow

_NAMES = st.sampled_from([f"{corpus}{name}.tar" for corpus in ("a/", "b/deep/", "") for name in ("0", "9")])
_KEPT = ("a/4.tar", "b/4.tar", "4.tar")  # never deleted, so that no corpus looks like a lost mount
_BYTES = st.integers(1, 3).map(lambda size: b"x" * size)
_SECONDS = st.sampled_from([1, 50, 120])  # files settle after 45
_RUN = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
_UNTIL_RED = settings(_RUN, max_examples=300, phases=[Phase.generate], derandomize=True)  # no shrinking: only whether


class Folder(RuleBasedStateMachine):
    """People upload, touch and delete; ticks come, are killed, and lose their cursor."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.folder = self.home / "landing"
        self.ticks = Arrivals(LocalStore(self.home / "store"), LocalStore(self.folder))
        self.writes = 0

    @initialize(
        shards=st.integers(1, 3), wait=st.sampled_from([0.0, 90.0]), sweep=st.sampled_from([0.0, 100.0]),
        batches=st.integers(1, 3), look=st.sampled_from([0.0, 4.0, 100.0]),
    )  # fmt: skip
    def begin(self, shards, wait, sweep, batches, look) -> None:
        complete = Complete(settle_seconds=45)
        size = BatchSize(shards=shards)
        self.ticks.rules = Rules(size, wait=wait, complete=complete, patience=100, sweep=sweep, batches=batches)
        self.ticks.look = look
        for name in _KEPT:
            self.upload(name, b"kept")

    @rule(name=_NAMES | st.sampled_from(_KEPT), data=_BYTES)
    def upload(self, name, data) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.writes += 1  # stamps differ although the clock stands still between ticks
        os.utime(path, (self.ticks.now + self.writes / 1000,) * 2)

    @rule(name=_NAMES)
    def redeliver(self, name) -> None:
        if (self.folder / name).exists():
            self.upload(name, (self.folder / name).read_bytes())

    @rule(name=_NAMES)
    def delete(self, name) -> None:
        (self.folder / name).unlink(missing_ok=True)

    @rule(seconds=_SECONDS)
    def tick(self, seconds) -> None:
        self.ticks.tick(seconds)

    @rule(seconds=_SECONDS, stored=st.integers(0, len(STEPS) - 1))
    def killed_tick(self, seconds, stored) -> None:
        self.ticks.tick(seconds, stored=stored)

    @rule(text=st.sampled_from([None, "", "junk", '{"version": 9}']))
    def lose_cursor(self, text) -> None:
        self.ticks.cursor = text

    @rule()
    def land_batch(self) -> None:
        """A person seals at once; the next ticks register what that run did not come to."""
        seal(self.ticks.store, self.ticks.landing, max_shards=2)

    def teardown(self) -> None:
        for _ in range(60):
            self.ticks.tick(50)
        self.ticks.check_history()
        lies = {item.key: (item.size, item.stamp) for item in self.ticks.landing.list() if is_shard(item.key)}
        assert self.ticks.live == lies
        assert self.ticks.partitions == [batch.key for batch in self.ticks.log]
        assert not self.ticks.tick(50).register
        shutil.rmtree(self.home)


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(look, "_SLICE", 3)


def test_after_enough_ticks_the_log_says_what_lies_there_and_all_of_it_is_registered_once():
    run_state_machine_as_test(Folder, settings=_RUN)


def _no_removals(monkeypatch):
    monkeypatch.setattr(look.Look, "_miss", lambda _, part, reach, names: True)


def _known(monkeypatch, change):
    real = arrivals.tick
    monkeypatch.setattr(
        support, "tick", lambda store, landing, text, known, *more, **by: real(
            store, landing, text, change(store, known), *more, **by
        )
    )  # fmt: skip


def _forgets_what_is_registered(monkeypatch):
    _known(monkeypatch, lambda store, known: [])


def _trusts_that_killed_ticks_registered(monkeypatch):
    _known(monkeypatch, lambda store, known: [batch.key for batch in read_log(store)])


def _believes_the_cursor(monkeypatch):
    """No sweep: what the fast pass moved past is never looked at again."""
    monkeypatch.setattr(look.Look, "sweep", lambda _: None)


@pytest.mark.parametrize(
    "planted", [_no_removals, _forgets_what_is_registered, _trusts_that_killed_ticks_registered, _believes_the_cursor]
)
def test_the_planted_bug_turns_it_red(planted, monkeypatch):
    planted(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Folder, settings=_UNTIL_RED)
