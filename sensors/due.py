"""The condition behind automation: what is due, by new data or because its one retry is left.

Dagster's own operators lose two things that this one keeps. `since(newly_requested())` forgets an edge
that falls into the tick after a request, and `execution_failed().newly_true()` sees a new failure after
every retry it starts. What does not belong here: which assets, and what must be ready first.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

_AT_MOST_WAITS = 5  # a steady stream of changes is acted on after this many quiet times
_READ_TAG = "dagster/input_event_pointer"  # storage id of the materialisation that a step found when it began
_UNPARTITIONED = ""


@dataclass
class Memory:
    """What is remembered between ticks, per partition ("" where there are none). Times are epoch seconds."""

    pending: dict[str, list[float]] = field(default_factory=dict)  # first and last time a cause was seen
    retried: set[str] = field(default_factory=set)  # the one retry of the present failure was asked for

    @classmethod
    def parse(cls, text: str | None) -> "Memory":
        """Read a cursor; one that is lost or of another release is empty, which costs a look and no work."""
        try:
            read = json.loads(text or "{}")
            pending = {name: [float(first), float(last)] for name, (first, last) in read.get("pending", {}).items()}
            return cls(pending, set(read.get("retried", [])))
        except (ValueError, TypeError, AttributeError):
            return cls()

    def dump(self) -> str:
        """The cursor."""
        return json.dumps({"pending": self.pending, "retried": sorted(self.retried)})

    def handle_requests(self, requested: Iterable[str]) -> None:
        """Strike out what the tick before asked for: new data earns a retry of its own, a retry spends it."""
        for name in requested:
            if self.pending.pop(name, None) is not None:
                self.retried.discard(name)
            else:
                self.retried.add(name)

    def see(self, caused: Iterable[str], now: float) -> None:
        """Remember causes; after `handle_requests`, for a run that was asked for may not have read them."""
        for name in caused:
            self.pending[name] = [self.pending.get(name, [now])[0], now]

    def due(self, now: float, quiet_seconds: float) -> set[str]:
        """Pending partitions whose last cause is `quiet_seconds` old, or whose first is several times that."""
        most = quiet_seconds * _AT_MOST_WAITS
        return {  # a clock that was set back must not hold anything for ever
            name
            for name, (first, last) in self.pending.items()
            if abs(now - last) >= quiet_seconds or abs(now - first) >= most
        }


class Due(dg.AutomationCondition):
    """True for partitions that new data of `upstream` makes due, and for failed ones not yet retried.

    A cause is a changed data version of `upstream`, or that the asset has become missing. It is
    remembered until a run is requested, or until a run, whoever asked for it, turns out to have read the
    present version. Nothing counts as due while it is being made.
    """

    def __init__(self, upstream: dg.AssetKey, *, quiet_seconds: float = 0) -> None:
        conditions = dg.AutomationCondition
        self.upstream, self.quiet_seconds = upstream, quiet_seconds
        self._cause = (
            conditions.asset_matches(upstream, conditions.data_version_changed()).with_label("upstream_changed")
            | conditions.newly_missing()
        )
        self._failed = conditions.execution_failed()
        self._busy = conditions.in_progress()

    @property
    def description(self) -> str:
        wait = f", {self.quiet_seconds:g} s after the last change" if self.quiet_seconds else ""
        return f"new data of {self.upstream.to_user_string()}{wait}, or one retry after a failure"

    @property
    def children(self) -> list[dg.AutomationCondition]:
        return [self._cause, self._failed, self._busy]

    async def evaluate(self, context: Any) -> dg.AutomationResult:  # type: ignore[override]
        """The due part of the candidates; state is kept for all partitions."""
        everything = context.asset_graph_view.get_full_subset(key=context.key)
        results = [
            await context.for_child_condition(child, child_indices=[at], candidate_subset=everything).evaluate_async()
            for at, child in enumerate(self.children)
        ]
        caused, failed, busy = (_names(result.true_subset) for result in results)
        now = context.evaluation_time.timestamp()

        memory = Memory.parse(context.cursor)
        memory.handle_requests(_names(context.get_previous_requested_subset(context.key)))
        memory.see(caused, now)
        for name in self._up_to_date(context, memory.pending.keys() - busy):
            del memory.pending[name]
        memory.retried &= failed | busy  # neither: it was made after all

        due = (memory.due(now, self.quiet_seconds) | (failed - memory.retried)) - busy
        return dg.AutomationResult(context, _subset(context, due), cursor=memory.dump(), child_results=results)

    def _up_to_date(self, context: Any, names: set[str]) -> set[str]:
        """Those last made from what `upstream` is: their step began when its newest materialisation was there.

        A fan-in over partitions cannot tell, and is made again: its work key decides whether that is work.
        """
        graph = context.asset_graph
        mine, theirs = graph.get(context.key).partitions_def, graph.get(self.upstream).partitions_def
        if not names or (mine is None) != (theirs is None):
            return set()
        instance, tag = context.asset_graph_view.instance, f"{_READ_TAG}/{self.upstream.to_user_string()}"
        there = _newest(instance, self.upstream, names)
        made = {name: _tags(instance, context.key, at) for name, at in _newest(instance, context.key, names).items()}
        return {name for name, tags in made.items() if name in there and tags.get(tag) == str(there[name])}


def _names(subset: Any) -> set[str]:
    """Partition keys of a subset; "" for an asset without partitions."""
    if subset is None or subset.is_empty:
        return set()
    return set(subset.expensively_compute_partition_keys()) if subset.is_partitioned else {_UNPARTITIONED}


def _subset(context: Any, names: set[str]) -> Any:
    """The candidates among these partitions."""
    candidates = context.candidate_subset
    if candidates.is_partitioned:
        return candidates.compute_intersection_with_partition_keys(names & _names(candidates))
    return candidates if names else context.get_empty_subset()


def _newest(instance: dg.DagsterInstance, key: dg.AssetKey, names: set[str]) -> dict[str, int]:
    """The storage id of the newest materialisation of each partition that has one."""
    if names == {_UNPARTITIONED}:
        records = instance.fetch_materializations(key, limit=1).records
        return dict.fromkeys(names, records[0].storage_id) if records else {}
    return dict(instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION, names))


def _tags(instance: dg.DagsterInstance, key: dg.AssetKey, storage_id: int) -> Mapping[str, str]:
    """The tags of one materialisation; events hold pictures, so one at a time."""
    wanted = dg.AssetRecordsFilter(asset_key=key, storage_ids=[storage_id])
    (record,) = instance.fetch_materializations(wanted, limit=1).records
    return (record.asset_materialization.tags if record.asset_materialization else None) or {}
