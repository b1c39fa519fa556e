"""Every storage operation of a job, numbered, and what happens when each one fails or is the last.

`python -m tests.support.operations HOME FIRST STEP MODES [BUG]` explores the points FIRST, FIRST + STEP, ... of
the small job in `tests/support/small_job.py` until a run ends with no fault fired, and prints one JSON line a case;
with a planted bug, up to the first problem. It is a process of its own because it forks: nothing in it has started a
thread pool when it does.
"""

import errno
import itertools
import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from compalign_dagster.store import Listed, Store, TransientStoreError
from tests.support import small_job

MODES = ("die", "once", "from")  # the process ends at this operation; it fails; it and all that follow fail
DIED = 137  # what a shell reports of a process that was killed with signal 9


@dataclass
class Faults:
    """Numbers operations from 1 and makes one of them go wrong, in one of three ways; `at` 0 is never."""

    at: int = 0
    mode: str = "once"  # one of MODES
    done: list[str] = field(default_factory=list)

    @property
    def fired(self) -> bool:
        return 0 < self.at <= len(self.done)

    def step(self, what: str) -> None:
        """One more operation is about to happen, or an effect of one just has."""
        self.done.append(what)
        number = len(self.done)
        if not self.at or number < self.at or (number > self.at and self.mode == "once"):
            return
        if self.mode == "die":
            os._exit(DIED)
        if number % 2:
            raise OSError(errno.EIO, f"planted fault {number}: {what}")
        raise TransientStoreError(what, expected="an answer", found=f"planted fault {number}", remedy="Run again.")


class Numbered:
    """Any store, with each call counted; `put_new` is two points, before its effect and after it."""

    def __init__(self, inner: Store, faults: Faults) -> None:
        self.inner, self.faults, self.url = inner, faults, inner.url

    def exists(self, key: str) -> bool:
        self.faults.step(f"exists {key}")
        return self.inner.exists(key)

    def stat(self, key: str) -> Listed:
        self.faults.step(f"stat {key}")
        return self.inner.stat(key)

    def read(self, key: str) -> bytes:
        self.faults.step(f"read {key}")
        return self.inner.read(key)

    def read_range(self, key: str, offset: int, length: int, *, stamp: str | None = None) -> bytes:
        self.faults.step(f"read_range {key}")
        return self.inner.read_range(key, offset, length, stamp=stamp)

    def open(self, key: str, *, stamp: str | None = None) -> BinaryIO:
        self.faults.step(f"open {key}")
        return self.inner.open(key, stamp=stamp)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Listed]:
        self.faults.step(f"list {prefix}")
        return self.inner.list(prefix, after=after)

    def folders(self, prefix: str = "") -> Iterator[str]:
        self.faults.step(f"folders {prefix}")
        return self.inner.folders(prefix)

    def put_new(self, key: str, source: bytes | Path) -> bool:
        self.faults.step(f"put_new {key}, before")
        new = self.inner.put_new(key, source)
        self.faults.step(f"put_new {key}, after")
        return new

    def fetch(self, key: str) -> Path:
        self.faults.step(f"fetch {key}")
        return self.inner.fetch(key)


def run_with(faults: Faults, home: Path, store: Path) -> None:
    """The whole job over the store in this folder, all its storage operations numbered."""
    small_job.run(home, store, lambda inner: Numbered(inner, faults))


def explore(home: Path, first: int, step: int, modes: Sequence[str] = MODES) -> Iterator[dict[str, Any]]:
    """The undisturbed run, then one line per case; the last of each mode is a run that reached no fault."""
    points = itertools.count(first, step)
    died = _deaths(home, points) if "die" in modes else {}  # all forks come before this process computes anything
    count, undisturbed = Faults(), _fresh(home, "undisturbed", first)
    run_with(count, home, undisturbed)
    wanted = small_job.outcome(undisturbed)
    yield {"mode": "undisturbed", "points": len(count.done)}
    for at, fired in died.items():
        yield {"at": at, "mode": "die", "fired": fired, "problems": _problems(home, _folder(home, "die", at), wanted)}
    for mode in (mode for mode in modes if mode != "die"):
        for at in itertools.count(first, step):
            yield (case := _fails(home, at, mode, wanted))
            if not case["fired"]:
                break


def _deaths(home: Path, points: Iterable[int]) -> dict[int, bool]:
    """Whether a child that was to die at these points did, up to the first that did not."""
    died: dict[int, bool] = {}
    for at in points:
        died[at] = _dies(home, at)
        if not died[at]:
            break
    return died


def _folder(home: Path, mode: str, at: int) -> Path:
    return home / "cases" / f"{mode}-{at}"


def _fresh(home: Path, mode: str, at: int) -> Path:
    folder = _folder(home, mode, at)
    shutil.copytree(home / "store", folder)
    return folder


def _dies(home: Path, at: int) -> bool:
    """Run the job in a child that dies at a point; whether it did."""
    folder = _fresh(home, "die", at)
    child = os.fork()
    if child == 0:
        try:
            run_with(Faults(at, "die"), home, folder)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, DIED), f"the child that was to die at {at} ended with {code}"
    return code == DIED


def _fails(home: Path, at: int, mode: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Run the job with a failing operation, whatever comes of it."""
    folder, faults = _fresh(home, mode, at), Faults(at, mode)
    ended = "to its end"
    try:
        run_with(faults, home, folder)
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    what = faults.done[at - 1] if faults.fired else ""
    problems = _problems(home, folder, wanted)
    if not faults.fired and ended != "to its end":
        problems.append(f"a run without a fault ended with {ended}")
    return {"at": at, "mode": mode, "fired": faults.fired, "what": what, "ended": ended, "problems": problems}


def _problems(home: Path, folder: Path, wanted: dict[str, Any]) -> list[str]:
    """What is not as after an undisturbed run, once the job was run again to its end with a healthy store."""
    try:
        run_with(Faults(), home, folder)
        found, unverified, redone = small_job.outcome(folder), small_job.unverified(folder), small_job.redone(folder)
    except Exception as error:
        return [f"the rerun ended with {type(error).__name__}: {error}"]
    differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    problems = [f"{name}: {found.get(name)!r}, undisturbed {wanted.get(name)!r}" for name in differ]
    problems += unverified + ([f"{redone} shards done again"] if redone > 1 else [])
    small_job.remove(folder)
    return problems


def main() -> None:
    """Explore as the command line says."""
    home, first, step, modes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(",")
    bug = (sys.argv[5:] or [""])[0]
    small_job.preload()
    os.fsync = lambda _: None  # a killed process loses nothing that was written: power cuts are another test
    if bug:
        small_job.BUGS[bug]()
    for case in explore(home, first, step, modes):
        print(json.dumps(case), flush=True)
        if bug and case.get("problems"):
            return


if __name__ == "__main__":
    main()
