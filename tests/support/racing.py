"""Processes that write and read one decided fact at once, and what each of them saw.

`python -m tests.support.racing KIND URL FOLDER WRITERS READERS COMMITS [BUG]` forks them, waits for the writers and
then stops the readers. Each leaves `FOLDER/<role>-<number>.json`.
"""

import itertools
import json
import logging
import os
import random
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compalign_dagster import artifacts, decisions
from compalign_dagster.selection import current
from compalign_dagster.store import LocalStore, Store, open_store

FACT = "fact"
_EVERY = 20  # a reader looks at the whole history after so many looks at the newest version


class CheckThenWrite(LocalStore):
    """The planted bug: two writers may both find that a key is free."""

    def put_new(self, key: str, source: bytes | Path) -> bool:
        path = self.path(key)
        if path.exists():
            return False
        assert isinstance(source, bytes)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        temporary.write_bytes(source)
        temporary.replace(path)
        return True


def write_facts(store: Store, writer: int, commits: int) -> dict[str, Any]:
    """Decide `commits` versions, each naming an object that was put before it; what was won, and what was lost."""
    won, lost = [], 0
    for number in range(commits):
        parent = f"parents/{writer}-{number}"
        store.put_new(parent, b"{}")
        while True:
            now = decisions.current(store, FACT)
            try:
                decision = decisions.decide(
                    store, FACT, {"writer": writer, "manifest": parent}, after=now.version if now else 0
                )
            except decisions.DecidedMeanwhileError:
                lost += 1
                time.sleep(random.uniform(0, 0.002))
                continue
            won.append(decision.version)
            break
    return {"won": won, "lost": lost}


def move_current(store: Store, writer: int, commits: int) -> dict[str, Any]:
    """Publish datasets by random policies and ledgers, most of them rising, and offer each as `current`."""
    moved = 0
    for number in range(commits):
        dataset = artifacts.publish(
            store,
            "filtered_dataset",
            f"{writer}-{number}",
            {"kept": b"x"},
            code_version=1,
            inputs=[],
            config={},
            facts={},
        )
        around = random.Random(f"{writer} {number}")
        moved += current.move(dataset, policy=number // 8 + around.randint(0, 1), ledger=number + around.randint(0, 4))
    return {"moved": moved}


def read_facts(store: Store, name: str, stop: Path) -> dict[str, Any]:
    """Look at the newest version until told to stop; what must never be seen."""
    seen, looks, wrong = 0, 0, []
    for looks in itertools.count(1):
        if stop.exists():
            break
        now = decisions.current(store, name)
        version = now.version if now else 0
        if version < seen:
            wrong.append(f"version {version} after {seen}")
        seen = version
        if now and not store.exists(now.value["manifest"]):
            wrong.append(f"version {version} without its parent")
        if looks % _EVERY == 0:
            versions = [decision.version for decision in decisions.history(store, name)]
            if versions != list(range(1, len(versions) + 1)) or len(versions) < seen:
                wrong.append(f"a history of {versions} after version {seen} was seen")
            seen = max(seen, len(versions))
        time.sleep(0.005)
    return {"looks": looks, "seen": seen, "wrong": wrong}


def _fork(out: Path, work: Callable[[], dict[str, Any]]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        out.write_text(json.dumps(work()))
        os._exit(0)
    except BaseException:
        out.write_text(json.dumps({"crashed": traceback.format_exc()}))
    finally:
        os._exit(1)


def main() -> None:
    """Race as the command line says."""
    kind, url, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    writers, readers, commits = map(int, sys.argv[4:7])
    write, name = {"facts": (write_facts, FACT), "current": (move_current, "current")}[kind]
    os.fsync = lambda _: None  # races are closer without waiting for the disk
    logging.disable()  # hundreds of refused offers are expected

    def store() -> Store:
        return CheckThenWrite(Path(url)) if sys.argv[7:] else open_store(url)

    stop = folder / "stop"
    reading = [_fork(folder / f"reader-{at}.json", lambda: read_facts(store(), name, stop)) for at in range(readers)]
    writing = [
        _fork(folder / f"writer-{at}.json", lambda at=at: write(store(), at, commits // writers))
        for at in range(writers)
    ]
    for child in writing:
        os.waitpid(child, 0)
    stop.touch()
    for child in reading:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
