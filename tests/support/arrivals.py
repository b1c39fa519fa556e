"""Ticks of arrival as the daemon makes them, over a clock of their own: events, then partitions, then the cursor."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from compalign_dagster.crawl.arrivals import Ticked, tick
from compalign_dagster.crawl.batches import Batch, live_shards, read_log
from compalign_dagster.crawl.look import Rules
from compalign_dagster.store import Store

STEPS = ("events", "partitions", "cursor")  # what the daemon stores of a tick, in this order


@dataclass
class Arrivals:
    """A landing folder, a store, and what a daemon knows of them. `look` seconds pass at each look at the clock."""

    store: Store
    landing: Store
    rules: Rules = field(default_factory=Rules)
    now: float = 2_000_000.0
    look: float = 0.0
    cursor: str | None = None
    partitions: list[str] = field(default_factory=list)
    events: list[Batch] = field(default_factory=list)

    def tick(self, seconds: float = 30.0, *, stored: int = len(STEPS), **rules: object) -> Ticked:
        """One tick after so many seconds, of which the daemon stores so many STEPS before it dies."""
        self.now += seconds
        clock = iter(range(1_000_000))
        ticked = tick(
            self.store,
            self.landing,
            self.cursor,
            self.partitions,
            replace(self.rules, **rules),
            now=self.now,
            elapsed=lambda: next(clock) * self.look,
        )
        if stored >= 1:
            self.events += ticked.register
        if stored >= 2:
            assert not {batch.key for batch in ticked.register} & set(self.partitions), "registered twice"
            self.partitions += [batch.key for batch in ticked.register]
        if stored >= 3:
            self.cursor = ticked.cursor
        return ticked

    def until_quiet(self, most: int = 100) -> int:
        """Tick until nothing is left to register or to sweep; how many ticks that took."""
        for count in range(1, most + 1):
            before = self.cursor
            if not self.tick().register and self.cursor is not None and before is not None:
                return count
        raise AssertionError(f"still busy after {most} ticks")

    @property
    def log(self) -> list[Batch]:
        return read_log(self.store)

    @property
    def live(self) -> dict[str, tuple[int, str]]:
        """Size and stamp of the shards of the crawl, by name."""
        return {name: (item.size, item.stamp) for name, (_, item) in live_shards(self.log).items()}

    def check_history(self) -> None:
        """Every delivery is in one entry of the log, each entry is true, what is registered is logged, once."""
        crawl: dict[str, tuple[int, str]] = {}
        for batch in self.log:
            names = [*(item.shard for item in (*batch.added, *batch.superseded)), *batch.removed]
            assert_once(names, f"shards of {batch.key}")
            for item in batch.added:
                assert item.shard not in crawl, f"{item.shard} added twice"
                crawl[item.shard] = (item.size, item.stamp)
            for item in batch.superseded:
                assert crawl[item.shard] != (item.size, item.stamp), f"{item.shard} superseded by itself"
                crawl[item.shard] = (item.size, item.stamp)
            for name in batch.removed:
                assert crawl.pop(name, None), f"{name} removed and was not there"
        assert_once(self.partitions, "partitions")
        assert set(self.partitions) <= {batch.key for batch in self.log}
        assert set(self.partitions) <= {batch.key for batch in self.events}


def assert_once(names: Iterable[str], what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    assert not twice, f"twice among {what}: {twice[:3]}"
