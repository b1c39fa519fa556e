"""The manifest of a model folder, and the proof that a folder is exactly what its manifest says.

`model.json` lists every file with digest and size, and says what the model is. Everything is checked
before any of it is handed to a library: a folder from elsewhere is hostile until its files are those
that training wrote. What does not belong here: building a network from the files (`folder.py`).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from compalign_dagster.errors import InputError
from compalign_dagster.versions import digest_bytes, digest_file, digest_json

FORMAT = 3
MANIFEST, METRICS, RECORD, CARD = "model.json", "metrics.json", "record.json", "README.md"
_DESCRIPTIONS = frozenset({METRICS, RECORD, CARD})  # change no score
_MACHINE = frozenset({"threads", "cache_mib", "processes", "checkpoint_every"})  # of the configuration, likewise
_FIRST_FORMAT = "reward.json"
_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".md"})
_MANIFEST_BYTES = 4 << 20
_JSON_BYTES = 64 << 20  # the tokenizer of a multilingual encoder has some 35 MB
_MOST_FILES = 1000
_REMOTE_CODE = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "custom_generate"})
_ATTENTION = frozenset({"attn_implementation", "_attn_implementation"})
_KEYS = {"format", "backbone", "config", "model_version", "files", "about", "digest"}


@dataclass(frozen=True)
class Manifest:
    """What `model.json` says: the model, and `{"sha256", "bytes"}` of every other file by its name."""

    backbone: str
    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    about: dict[str, Any]  # seeds, versions of code, data and libraries: for people, no part of the version

    @property
    def model_version(self) -> str:
        """64 hex digits that change exactly when a score could.

        Metrics, record, card and `about` are left out, and the settings that only say how the training
        machine was used.
        """
        config = {name: value for name, value in self.config.items() if name not in _MACHINE}
        files = {name: facts["sha256"] for name, facts in self.files.items() if name not in _DESCRIPTIONS}
        return digest_json({"backbone": self.backbone, "config": config, "files": files})

    def as_bytes(self) -> bytes:
        """The one way to write this manifest; every byte of it counts."""
        body = {"format": FORMAT, **vars(self), "model_version": self.model_version}
        return json_bytes({**body, "digest": digest_json(body)})


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON as the files of a model folder hold it. ValueError for NaN."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of every file below `folder` but the manifest, by name."""
    found = {}
    for name in sorted(_names(folder)):
        if name != MANIFEST:
            found[name] = {"sha256": digest_file(folder / name), "bytes": (folder / name).stat().st_size}
    return found


def verified(folder: Path) -> Manifest:
    """The manifest of a model folder whose every file is the one that it lists.

    `InputError`, naming the file, for anything else: files that may hold code, links, files that are
    not listed, missing or changed, JSON that asks for remote code or is too large.
    """
    _require_manifest(folder)
    names = set(_names(folder))
    for name in sorted(names):
        _refuse_kind(folder, name)
    manifest = _read(folder)
    listed = {MANIFEST, *manifest.files}
    for name in sorted(listed - names):
        raise refused(folder, name, "the file that model.json lists", "no such file", "Restore it, or train again.")
    for name in sorted(names - listed):
        raise refused(folder, name, "a file that model.json lists", "an unknown file", "Remove it from the folder.")
    for name, facts in manifest.files.items():
        _verify(folder, name, facts)
    return manifest


def refused(folder: Path, name: str, expected: str, found: str, remedy: str) -> InputError:
    """The error about one file of a model folder."""
    shown = "".join(character if character.isprintable() else "?" for character in name)
    return InputError(f"model file {folder}/{shown}", expected=expected, found=found, remedy=remedy)


def asks_for_code(key: str, value: Any) -> bool:
    """Whether an entry of a JSON description has transformers run code that came with it or lies on the hub.

    An attention implementation with a slash is a kernel: the name of a hub repository, fetched and imported.
    """
    return bool(value) and (key in _REMOTE_CODE or (key in _ATTENTION and "/" in str(value)))


def _require_manifest(folder: Path) -> None:
    if os.path.lexists(folder / MANIFEST):
        return
    first = os.path.lexists(folder / _FIRST_FORMAT)
    raise InputError(
        f"model folder {folder}",
        expected=f"a model of format {FORMAT}, with {MANIFEST}",
        found=f"format 1, with {_FIRST_FORMAT}" if first else "no such file" if folder.is_dir() else "no such folder",
        remedy="Train again, or use the release that wrote it."
        if first
        else "Give the folder that training wrote, whole.",
    )


def _names(folder: Path) -> Iterator[str]:
    """Every file below `folder`, relative; what is neither a file nor a folder is refused."""
    waiting, count = [folder], 0
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(folder).as_posix()
                count += 1
                if count > _MOST_FILES:
                    raise refused(folder, name, f"at most {_MOST_FILES} files", "more", "Give a model folder.")
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield name
                else:
                    kind = "a symbolic link" if entry.is_symlink() else "neither a file nor a folder"
                    raise refused(folder, name, "a regular file", kind, "Replace it by the file that training wrote.")


def _refuse_kind(folder: Path, name: str) -> None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in _SUFFIXES:
        raise refused(
            folder,
            name,
            f"only files that cannot hold code: {', '.join(sorted(_SUFFIXES))}",
            f"a {suffix or 'nameless'} file",
            "Remove it; weights are safetensors. Do not open it: a pickle or a script runs what is in it.",
        )


def _read(folder: Path) -> Manifest:
    """The manifest, if its bytes are those that `Manifest.as_bytes` writes."""
    path = folder / MANIFEST
    size = path.stat().st_size
    if size > _MANIFEST_BYTES:
        raise refused(folder, MANIFEST, f"at most {_MANIFEST_BYTES:,} bytes", f"{size:,}", "Train again.")
    data = path.read_bytes()
    body = _parsed(folder, MANIFEST, data)
    found = body.get("format") if isinstance(body, dict) else None
    if found != FORMAT:
        raise refused(folder, MANIFEST, f"format {FORMAT}", f"format {found!r}", "Use the release that wrote it.")
    try:
        manifest = Manifest(*(body[name] for name in ("backbone", "config", "files", "about")))
        names = list(manifest.files)
        named = isinstance(manifest.backbone, str)
        sizes = all(type(facts["bytes"]) is int for facts in manifest.files.values())
        whole = set(body) == _KEYS and named and sizes and manifest.as_bytes() == data
    except (KeyError, TypeError, ValueError, AttributeError):
        names, whole = [], False
    for name in names:
        parts = name.split("/")
        if name == MANIFEST or "\\" in name or "\0" in name or {"", ".", ".."} & set(parts):
            raise refused(folder, name, "a path inside the folder", "one that is not", "Train again.")
    if not whole:
        raise refused(folder, MANIFEST, "what training wrote", "other bytes", "Restore it, or train again.")
    return manifest


def _verify(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    path = folder / name
    size = path.stat().st_size
    if size != facts["bytes"]:
        raise refused(folder, name, f"{facts['bytes']:,} bytes", f"{size:,}", "Restore it, or train again.")
    if path.suffix.lower() == ".json" and size > _JSON_BYTES:
        raise refused(folder, name, f"JSON of at most {_JSON_BYTES:,} bytes", f"{size:,}", "Do not use this model.")
    data = path.read_bytes() if path.suffix.lower() == ".json" else None
    found = digest_file(path) if data is None else digest_bytes(data)
    if found != facts["sha256"]:
        raise refused(folder, name, f"sha256 {facts['sha256']}", found, "Restore it, or train again.")
    if data is not None:
        _parsed(folder, name, data)


def _parsed(folder: Path, name: str, data: bytes) -> Any:
    """JSON in which nothing asks for code."""
    asked: list[str] = []

    def looked_at(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        asked.extend(key for key, item in found.items() if asks_for_code(key, item))
        return found

    try:
        value = json.loads(data, object_pairs_hook=looked_at)
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise refused(folder, name, "JSON", why, "Restore it, or train again.") from error
    if asked:
        raise refused(
            folder,
            name,
            "no configuration that asks for code",
            f"the key {asked[0]}",
            "Do not use this model: it wants to run code that came with it.",
        )
    return value
