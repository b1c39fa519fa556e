"""One tick of the arrival of shards: look at the landing folder, seal what is due, say what to register.

Two passes look. The fast pass lists, below each top-level folder, what sorts behind the last key that it
handled: that is where new shards appear. The sweep goes through everything in key order, spread over as
many ticks as it needs, and finds what the fast pass cannot: other bytes under an old name, removals,
shards that sort before the position. The batch log is the truth and the cursor a hint. Nothing pending is
kept: what is complete and not in the log is found again by the next tick.

What does not belong here: the passes themselves (`look.py`), what the log is (`batches.py`), what a complete
shard is (`landed.py`), Dagster.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from compalign_dagster.crawl import landed
from compalign_dagster.crawl.batches import Batch, live_shards, read_log
from compalign_dagster.crawl.cursor import Cursor
from compalign_dagster.crawl.look import Look, Rules
from compalign_dagster.store import AccessDeniedError, Store, TransientStoreError

_FAILURES = 3  # consecutive ticks without access before one fails
_RED_SECONDS = 300  # a failing tick saves nothing, so that working ticks must come between failing ones


@dataclass(frozen=True)
class Ticked:
    """What came of it. `register` is in the order of the log and may repeat what a killed tick reported."""

    register: tuple[Batch, ...]
    cursor: str
    message: str
    warnings: tuple[str, ...]


def tick(
    store: Store,
    landing: Store,
    text: str | None,
    known: Collection[str],
    rules: Rules,
    *,
    now: float,
    elapsed: Callable[[], float],
) -> Ticked:
    """Look, seal, and say which batches to register.

    `text` is the cursor of an earlier tick, `known` the batches that are registered, `now` seconds since
    the epoch, `elapsed` seconds since this tick began.

    Raises:
        InputError: when a corpus of the log has no shard left, in most ticks that have nothing to register.
        AccessDeniedError, TransientStoreError: from the third consecutive tick that meets one.
    """
    cursor = Cursor.parse(text)
    try:
        return _tick(store, landing, cursor, known, rules, now, elapsed)
    except (AccessDeniedError, TransientStoreError) as error:
        failures = cursor.failures + 1
        if failures >= _FAILURES:
            raise
        again = cursor.model_copy(update={"failures": failures})
        message = f"{error} (consecutive failure {failures}; from the {_FAILURES}rd on the tick fails)"
        return Ticked((), again.dump(), message, (message,))


def _tick(
    store: Store,
    landing: Store,
    cursor: Cursor,
    known: Collection[str],
    rules: Rules,
    now: float,
    elapsed: Callable[[], float],
) -> Ticked:
    batches = read_log(store)
    registered = set(known)
    backlog = [batch for batch in batches if batch.key not in registered]
    look = Look(landing, cursor, live_shards(batches), rules, now, elapsed, room=rules.batches - len(backlog))
    look.fast()
    look.sweep()
    register = (backlog + look.seal(store, len(batches)))[: rules.batches]
    after, warnings = look.after(), look.warnings()
    if look.lost and not register and 0 <= now - cursor.saved < _RED_SECONDS:
        raise landed.lost_corpora(landing, look.lost)
    told = f"{len(register)} batches registered" if register else f"nothing new in {landing.url}"
    if after.since is not None:
        told += f"; {look.left()} changes wait for their batch to fill"
    if after.waiting:
        told += f"; {len(after.waiting)} shards are not complete"
    return Ticked(tuple(register), after.dump(), "; ".join([told, *warnings]), tuple(warnings))
