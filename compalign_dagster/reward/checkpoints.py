"""Where a training stands, on a disk: written whole or not at all, and believed only when it proves itself.

A checkpoint is one safetensors file `WORK.NUMBER.SHA256.safetensors`: tensors by name, and a JSON object in the
header. WORK says which training it belongs to, SHA256 is the digest of the file. What does not belong here: what
a training keeps (`training.py`).
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compalign_dagster.errors import InputError
from compalign_dagster.versions import digest_file

_KEPT = 2  # the newest, and the one before it should the newest turn out to be damaged
_NAME = re.compile(r"(?P<work>[0-9a-f]{16})\.(?P<number>\d{10})\.(?P<sha>[0-9a-f]{64})\.safetensors")
_HEADER = "checkpoint"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was kept: tensors on the CPU, and JSON values."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix` and a slash, without that."""
        start = f"{prefix}/"
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


class Checkpoints:
    """The checkpoints of one training in a folder that others may use too.

    Args:
        folder: made when the first one is written.
        work: a hex digest of everything that decides the training's result.
    """

    def __init__(self, folder: Path, work: str) -> None:
        self.folder, self.work = folder, work[:16]

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Write the next checkpoint, then remove all but the two newest. `InputError` where the disk refuses."""
        number = max((number for number, _ in self._mine()), default=0) + 1
        temporary = self.folder / f".{self.work}.{os.getpid()}.part"
        kept = _apart(tensors)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(kept, temporary, metadata={_HEADER: json.dumps(facts)})
            _sync(temporary)
            target = self.folder / f"{self.work}.{number:010d}.{digest_file(temporary)}.safetensors"
            temporary.replace(target)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):  # the error at hand says what is wrong with the disk
                temporary.unlink(missing_ok=True)
            raise InputError(
                f"checkpoints {self.folder}",
                expected="a folder with room for the model three times over",
                found=" ".join(str(error).split())[:300],
                remedy="Make room or choose another folder; the training goes on from the newest checkpoint there.",
            ) from error
        for _, old in self._mine()[_KEPT:]:
            old.unlink(missing_ok=True)
        return target

    def newest(self) -> Checkpoint | None:
        """The newest one that is whole; damaged ones and those of other trainings are named and passed over."""
        for path in self._others():
            logger.warning("checkpoint %s is of another training (this one is %s): ignored", path.name, self.work)
        for _, path in self._mine():
            found = _read(path)
            if found is not None:
                logger.info("going on from checkpoint %s", path.name)
                return found
        return None

    def clear(self) -> None:
        """Remove this training's checkpoints, and the folder if nothing else is in it."""
        for path in [*(path for _, path in self._mine()), *self.folder.glob(f".{self.work}.*.part")]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _mine(self) -> list[tuple[int, Path]]:
        """Number and path, the newest first."""
        matches = [(_NAME.fullmatch(path.name), path) for path in _files(self.folder)]
        mine = [(int(match["number"]), path) for match, path in matches if match and match["work"] == self.work]
        return sorted(mine, reverse=True)

    def _others(self) -> list[Path]:
        matches = [(_NAME.fullmatch(path.name), path) for path in _files(self.folder)]
        return sorted(path for match, path in matches if match and match["work"] != self.work)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, no two sharing memory, which safetensors refuses (tied weights share it)."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        found = value.detach().cpu().contiguous()
        place = found.data_ptr() if found.numel() else 0
        kept[name] = found.clone() if place in seen else found
        seen.add(place)
    return kept


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _read(path: Path) -> Checkpoint | None:
    """None, with a warning, for a file that is not what its name says."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    try:
        if digest_file(path) != match["sha"]:
            logger.warning("checkpoint %s is cut short or altered: ignored", path.name)
            return None
        with safe_open(path, framework="pt") as stream:
            facts = json.loads((stream.metadata() or {})[_HEADER])
            return Checkpoint({name: stream.get_tensor(name) for name in stream.keys()}, facts)  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        logger.warning("checkpoint %s cannot be read (%s): ignored", path.name, error)
        return None


def _sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
