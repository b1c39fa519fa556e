"""What a power cut may leave of the files that code wrote, by the letter of POSIX.

`record` notes the file operations of a piece of code. `Machine` replays them up to any one and gives the states that
the disk may be in if the power goes right then: a file's bytes are safe only after its own `fsync`, a name only after
an `fsync` of the folder it is in, and a folder only where its own name is. All else may be lost, torn at 512 bytes
or kept, in any combination, whatever the order it was made in.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
TOLD = ("acknowledged", "gone")
"""Events that are no operations."""


class KilledError(BaseException):
    """The process ends here: no handler may go on writing."""


@dataclass(frozen=True)
class Event:
    """One operation. `data` is what a created file will hold; paths are relative to the recorded folder."""

    kind: (
        str  # mkdir, create, fsync, link, rename, unlink; acknowledged, gone: somebody was told that it is (not) there
    )
    path: str
    other: str = ""  # of a link or rename: the existing name
    data: bytes = b""


@dataclass
class Recorder:
    """The operations so far; the process is killed once there are `kill_at` of them."""

    base: Path
    lost: Callable[[str, bool, str], bool]  # path, is it a folder, context: whether this fsync is left out
    kill_at: int | None = None
    events: list[Event] = field(default_factory=list)
    context: str = ""  # what the code under test is doing, said by its caller
    dead: bool = False

    def note(self, kind: str, path: str | Path, other: str | Path = "", data: bytes = b"") -> None:
        """Remember an operation under `base`, then die if this was the last."""
        self.events.append(Event(kind, self._inside(path), self._inside(other) if other else "", data))
        if kind not in TOLD and self.kill_at == sum(event.kind not in TOLD for event in self.events):
            self.dead, self.kill_at = True, None
            raise KilledError

    def created(self, path: str | Path) -> None:
        """A file met for the first time, with all that was written to it so far."""
        if not any(event.kind == "create" and event.path == self._inside(path) for event in self.events):
            self.note("create", path, data=Path(path).read_bytes())

    def _inside(self, path: str | Path) -> str:
        return Path(path).relative_to(self.base).as_posix()


@contextmanager
def record(recorder: Recorder) -> Iterator[Recorder]:
    """Note each mkdir, link, rename, unlink and fsync of this process, and each new file when it is synced or named."""
    real = {name: getattr(os, name) for name in ("mkdir", "link", "replace", "unlink", "fsync")}

    def mkdir(path: Path, mode: int = 0o777) -> None:
        real["mkdir"](path, mode)
        recorder.note("mkdir", path)

    def link(existing: Path, new: Path) -> None:
        recorder.created(existing)
        real["link"](existing, new)
        recorder.note("link", new, existing)

    def replace(existing: Path, new: Path) -> None:
        recorder.created(existing)
        real["replace"](existing, new)
        recorder.note("rename", new, existing)

    def unlink(path: Path) -> None:
        if recorder.dead:
            raise KilledError
        recorder.created(path)
        real["unlink"](path)
        recorder.note("unlink", path)

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if not path.is_relative_to(recorder.base):
            return
        if not path.is_dir():
            recorder.created(path)
        if not recorder.lost(str(path), path.is_dir(), recorder.context):
            recorder.note("fsync", path)

    os.mkdir, os.link, os.replace = mkdir, link, replace  # type: ignore[assignment]
    os.unlink, os.fsync = unlink, fsync  # type: ignore[assignment]
    try:
        yield recorder
    finally:
        for name, function in real.items():
            setattr(os, name, function)


@dataclass
class _File:
    data: bytes
    synced: bool = False


@dataclass
class _Folder:
    durable: dict[str, "_File | _Folder"] = field(default_factory=dict)
    pending: list[tuple[str, "_File | _Folder | None"]] = field(default_factory=list)  # None: the name was removed

    def names(self) -> dict[str, "_File | _Folder"]:
        """The names a running process sees."""
        return _applied(self.durable, self.pending)


class Machine:
    """A disk that was empty, after some events."""

    def __init__(self, events: list[Event]) -> None:
        self.top = _Folder()
        self.acknowledged: dict[str, bytes] = {}
        self.gone: set[str] = set()
        self.written: dict[str, bytes] = {}  # the whole bytes of every linked name
        for event in events:
            getattr(self, f"_{event.kind}")(event)

    def cut(self, chooser: random.Random, *, kept: float) -> dict[str, bytes | None]:
        """A state after a power cut: path -> bytes, None for a folder. Unsynced effects stay with chance `kept`."""
        found: dict[str, bytes | None] = {}
        self._survive(self.top, "", chooser, kept, found)
        return found

    def _survive(
        self, folder: _Folder, path: str, chooser: random.Random, kept: float, found: dict[str, bytes | None]
    ) -> None:
        survived = [change for change in folder.pending if chooser.random() < kept]
        for name, entry in sorted(_applied(folder.durable, survived).items()):
            place = f"{path}{name}"
            if isinstance(entry, _Folder):
                found[place] = None
                self._survive(entry, f"{place}/", chooser, kept, found)
            else:
                found[place] = entry.data if entry.synced else _torn(entry.data, chooser)

    def _at(self, path: str) -> tuple[_Folder, str]:
        *way, name = path.split("/")
        folder = self.top
        for part in way:
            entry = folder.names()[part]
            assert isinstance(entry, _Folder)
            folder = entry
        return folder, name

    def _add(self, path: str, entry: "_File | _Folder | None") -> None:
        folder, name = self._at(path)
        folder.pending.append((name, entry))

    def _mkdir(self, event: Event) -> None:
        self._add(event.path, _Folder())

    def _create(self, event: Event) -> None:
        self._add(event.path, _File(event.data))

    def _link(self, event: Event) -> None:
        folder, name = self._at(event.other)
        entry = folder.names()[name]
        assert isinstance(entry, _File)
        self._add(event.path, entry)
        self.written[event.path] = entry.data

    def _rename(self, event: Event) -> None:
        self._link(event)
        self._add(event.other, None)

    def _unlink(self, event: Event) -> None:
        self._add(event.path, None)

    def _fsync(self, event: Event) -> None:
        if event.path == ".":
            entry: _File | _Folder = self.top
        else:
            folder, name = self._at(event.path)
            entry = folder.names()[name]
        if isinstance(entry, _File):
            entry.synced = True
        else:
            entry.durable, entry.pending = entry.names(), []

    def _acknowledged(self, event: Event) -> None:
        self.acknowledged[event.path] = self.written[event.path]

    def _gone(self, event: Event) -> None:
        self.gone.add(event.path)
        self.acknowledged.pop(event.path, None)


def _applied(
    names: dict[str, "_File | _Folder"], changes: list[tuple[str, "_File | _Folder | None"]]
) -> dict[str, "_File | _Folder"]:
    names = dict(names)
    for name, entry in changes:
        if entry is None:
            names.pop(name, None)
        else:
            names[name] = entry
    return names


def _torn(data: bytes, chooser: random.Random) -> bytes:
    """What may be there of unsynced bytes: none, a beginning, all, or all with some sectors still zero."""
    sectors = range(0, len(data), SECTOR)
    way = chooser.choice(("none", "beginning", "holes", "all"))
    if way == "beginning":
        return data[: SECTOR * chooser.randint(0, len(sectors))]
    if way == "holes":
        parts = (data[at : at + SECTOR] for at in sectors)
        return b"".join(part if chooser.random() < 0.5 else bytes(len(part)) for part in parts)
    return data if way == "all" else b""


def write_state(state: dict[str, bytes | None], folder: Path) -> None:
    """Make a folder that holds a state."""
    folder.mkdir()
    for path, data in state.items():
        place = folder / path
        if data is None:
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(data)
