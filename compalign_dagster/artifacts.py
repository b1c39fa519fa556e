"""Immutable artifacts: files that are named by work, proved by digests, and exist when their manifest does.

An artifact lies at `<kind>[/<partition>]/<work key>/`: its files under a folder named by their
digest, then `manifest.json`, put last and only if absent. Two writers of one work key cannot mix
their files, and the first manifest wins. A crash before the manifest leaves garbage, not an artifact.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Store
from compalign_dagster.store.base import checked_parts
from compalign_dagster.versions import canonical_json, digest_bytes, digest_file, digest_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Input:
    """One thing an artifact was made from, so that the chain verifies without Dagster's database."""

    kind: str
    key: str  # manifest key in the store, or the URL of something outside it
    data_version: str
    partition: str | None = None
    manifest_sha256: str | None = None  # of an artifact as a whole: what its data version leaves out counts too


@dataclass(frozen=True)
class Artifact:
    """A published artifact, read from its manifest."""

    store: Store
    path: str  # key prefix in the store, without a trailing slash
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def partition(self) -> str | None:
        return self.manifest["partition"]

    @property
    def work_key(self) -> str:
        return self.manifest["work_key"]

    @property
    def data_version(self) -> str:
        return self.manifest["data_version"]

    @cached_property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest's bytes, which are canonical JSON."""
        return digest_json(self.manifest)

    @property
    def facts(self) -> dict[str, Any]:
        return self.manifest["facts"]

    @property
    def inputs(self) -> list[Input]:
        return [Input(**entry) for entry in self.manifest["inputs"]]

    @property
    def manifest_key(self) -> str:
        return f"{self.path}/manifest.json"

    @property
    def uri(self) -> str:
        return f"{self.store.url}/{self.path}"

    def names(self) -> list[str]:
        """The data files; views are not among them."""
        return sorted(name for name, entry in self.manifest["files"].items() if not entry["view"])

    def has_view(self, name: str) -> bool:
        """Whether a page or picture of this name was drawn from the data."""
        return self.manifest["files"].get(name, {}).get("view", False)

    def file_key(self, name: str) -> str:
        """The store key of one of the artifact's files."""
        return f"{self.path}/{self.manifest['files'][name]['path']}"

    def fetch(self, name: str) -> Path:
        """A local path with the file's bytes."""
        return self.store.fetch(self.file_key(name))

    def checkout(self, folder: Path) -> Path:
        """Copy every data file under its own name into `folder`, for readers that want a folder.

        Not through `fetch`, whose copies from a bucket stay until the process ends. A name that would leave the
        folder is refused: the manifest may be anybody's.
        """
        for name in self.names():
            target = folder.joinpath(*checked_parts(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.store.open(self.file_key(name)) as stream, target.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
        return folder

    def as_input(self) -> Input:
        return Input(self.kind, self.manifest_key, self.data_version, self.partition, self.manifest_sha256)

    def verify(self) -> None:
        """Read every file and compare it with the manifest."""
        for name, facts in self.manifest["files"].items():
            found = digest_bytes(self.store.read(self.file_key(name)))
            if found != facts["sha256"]:
                raise CompalignError(
                    f"file {name} of {self.uri}",
                    expected=f"sha256 {facts['sha256']}",
                    found=found,
                    remedy="The store was altered; restore the file or materialise the asset again elsewhere.",
                )


def artifact_path(kind: str, work_key: str, partition: str | None = None) -> str:
    """The key prefix that a piece of work publishes to."""
    return "/".join(part for part in (kind, partition, work_key) if part)


def find(store: Store, kind: str, work_key: str, partition: str | None = None) -> Artifact | None:
    """The artifact of this work, or None while it has no manifest."""
    return load(store, f"{artifact_path(kind, work_key, partition)}/manifest.json")


def load(store: Store, manifest_key: str) -> Artifact | None:
    """The artifact with this manifest, or None."""
    try:
        data = store.read(manifest_key)
    except FileNotFoundError:
        return None
    manifest = json.loads(data)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise CompalignError(
            f"manifest {manifest_key} in {store.url}",
            expected=f"schema version {SCHEMA_VERSION}",
            found=repr(manifest.get("schema_version")),
            remedy="Read it with the release that wrote it.",
        )
    return Artifact(store, manifest_key.removesuffix("/manifest.json"), manifest)


def publish(
    store: Store,
    kind: str,
    work_key: str,
    files: Mapping[str, bytes | Path],
    *,
    code_version: int,
    inputs: Sequence[Input],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    views: Mapping[str, bytes] | None = None,
    partition: str | None = None,
) -> Artifact:
    """Publish files and their manifest; return the artifact that holds this work key afterwards.

    `files` are the data and make the data version. `views` are pages and pictures drawn from them and
    `facts` JSON values for people and checks; neither is part of the data version. When another
    writer published the same work first, its artifact is returned.
    """
    entries = {name: _describe(source) for name, source in sorted(files.items())}
    data_version = digest_json({name: entry["sha256"] for name, entry in entries.items()})
    path = artifact_path(kind, work_key, partition)
    for name in entries:
        entries[name] |= {"path": f"{data_version[:16]}/{name}", "view": False}
    for name, page in (views or {}).items():
        entries[name] = _describe(page)
        entries[name] |= {"path": f"{entries[name]['sha256'][:16]}/{name}", "view": True}
    for name, source in {**files, **(views or {})}.items():
        store.put_new(f"{path}/{entries[name]['path']}", source)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "partition": partition,
        "work_key": work_key,
        "code_version": code_version,
        "data_version": data_version,
        "inputs": [asdict(item) for item in inputs],
        "config": dict(config),
        "facts": dict(facts),
        "files": entries,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.put_new(f"{path}/manifest.json", canonical_json(manifest))
    published = load(store, f"{path}/manifest.json")
    assert published is not None, "a manifest that was just put must be readable"
    return published


def _describe(source: bytes | Path) -> dict[str, Any]:
    if isinstance(source, bytes):
        return {"sha256": digest_bytes(source), "bytes": len(source)}
    return {"sha256": digest_file(source), "bytes": source.stat().st_size}
