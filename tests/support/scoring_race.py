"""Two processes that have scored the same shard and publish it at the same moment."""

import multiprocessing
import time
from pathlib import Path
from typing import Any


def race(home: Path, *, bug: bool = False) -> list[dict[str, Any]]:
    """What each of two processes says: who scored what it was given back, its manifest, and whether it wrote that.

    `bug` plants a store that looks whether a key is free before it writes.
    """
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=_compete, args=(home, barrier, told, bug)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [told.get() for _ in processes]


def _compete(home: Path, barrier: Any, told: Any, bug: bool) -> None:
    from compalign_dagster.scoring import work as module
    from compalign_dagster.store import LocalStore
    from tests.support.scoring import REFERENCE, places_of, score_and_publish, works_of

    put_new, wrote, publish = LocalStore.put_new, [], module.publish_scores

    def put(self: LocalStore, key: str, source: bytes | Path) -> bool:
        if not key.endswith("/manifest.json"):
            return put_new(self, key, source)
        if bug:
            free = not self.path(key).exists()
            barrier.wait(60)  # both have looked
            if free:
                self.path(key).write_bytes(source if isinstance(source, bytes) else source.read_bytes())
            wrote.append(free)
        else:
            barrier.wait(60)
            wrote.append(put_new(self, key, source))
        return wrote[-1]

    def at_once(*arguments: Any) -> Any:
        barrier.wait(60)  # both have scored
        return publish(*arguments)

    LocalStore.put_new = put  # type: ignore[method-assign]
    module.publish_scores = at_once
    (work,) = works_of(home)
    artifact = score_and_publish(module.load_scorer(places_of(home), work.model, REFERENCE), work)
    time.sleep(0.5)  # until the other has written, should it overwrite
    manifest = LocalStore(home / "store").read(artifact.manifest_key).decode()
    told.put({"worker": artifact.facts["worker"], "manifest": manifest, "wrote": wrote[0]})
