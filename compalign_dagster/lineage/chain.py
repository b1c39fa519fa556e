"""The chain of artifacts behind an artifact, verified from the store's files alone.

What belongs here: walking manifests from an artifact to everything it was made from and comparing what
is there with what they say. What does not: whether decisions are right (`verify.py`), what a person wants
to know of one pair, and the event log of the orchestrator, which is never read.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage import erase, manifests
from compalign_dagster.lineage.manifests import Fault
from compalign_dagster.lineage.redaction import Redaction, redactions
from compalign_dagster.store import Store, seekable

_MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20

RESTORED = "a recorded takedown has emptied it, but it is again what it was: run that purge again"
Redacted = Mapping[str, Redaction]  # by file key; of what lies outside the store, by URL

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Link:
    """One input of one artifact: `source` was used to make `target` (a manifest key)."""

    target: str
    source: Input
    artifact: Artifact | None  # None when the source lies outside the store or is missing


@dataclass
class Checked:
    """What a walk found."""

    faults: list[Fault] = field(default_factory=list)
    redacted: list[str] = field(default_factory=list)  # keys of files that a recorded takedown rewrote
    artifacts: dict[str, Artifact] = field(default_factory=dict)  # by manifest key, nearest first
    links: int = 0
    outside: list[Input] = field(default_factory=list)  # inputs that lie outside the store
    bytes: int = 0  # of files that were read

    def sound(self, key: str) -> bool:
        """Whether nothing is known against a file or manifest."""
        return all(fault.where != key for fault in self.faults)


def verify(artifact: Artifact, store: Store | None = None) -> list[str]:
    """What is wrong in the chain behind `artifact`, one sentence each; empty when all of it holds.

    As `check`, with the redactions that the store records.
    """
    store = store or artifact.store
    return list(dict.fromkeys(str(fault) for fault in check(artifact, store, redactions(store)).faults))


def check(artifact: Artifact, store: Store | None = None, redacted: Redacted | None = None) -> Checked:
    """Every file and manifest behind `artifact`, compared with what the manifests say of it.

    Every file is read and compared with its manifest, every manifest with its data version, every input with
    what its user says it used. What lies outside the store (landed shards, label exports) is taken as stated, and
    `landed.py` reads it. A file that a recorded takedown rewrote counts as redacted if it is what was left then.
    """
    store = store or artifact.store
    found = Checked()
    waiting = _taken_in(store, artifact.manifest_key, found)
    while waiting:
        target = waiting.pop(0)
        _check_files(target, redacted or {}, found)
        for source in target.inputs:
            found.links += 1
            key = manifest_key_of(source)
            if key is None:
                found.outside.append(source)
                continue
            if key not in found.artifacts:
                waiting += _taken_in(store, key, found)
            found.faults += _faults_of_link(Link(target.manifest_key, source, found.artifacts.get(key)))
    found.outside = list(dict.fromkeys(found.outside))
    found.faults = list(dict.fromkeys(found.faults))
    log.info("lineage: %d artifacts, %d links, %d faults", len(found.artifacts), found.links, len(found.faults))
    return found


def manifest_key_of(source: Input) -> str | None:
    """The key of the manifest an input belongs to; None when the input is no artifact of a store.

    An input names a manifest, or a file `<artifact>/<digest>/<file>` of one.
    """
    if source.key.endswith(f"/{_MANIFEST}"):
        return source.key
    parts = source.key.split("/")
    inside = source.key.startswith(f"{source.kind}/") and len(parts) >= 4
    return manifests.key_of(source.key) if inside else None


def manifest_of(source: Input, found: Checked) -> Artifact | None:
    """The artifact of an input among those that a walk has read."""
    key = manifest_key_of(source)
    return found.artifacts.get(key) if key else None


def digest(store: Store, key: str) -> tuple[str, int]:
    """SHA-256 and size of an object, read as a stream. Raises a `StoreError`."""
    found, size = hashlib.sha256(), 0
    with store.open(key) as stream:
        while chunk := bytes(stream.read(_CHUNK_BYTES)):
            found.update(chunk)
            size += len(chunk)
    return found.hexdigest(), size


def _read(store: Store, key: str) -> tuple[Artifact | None, list[Fault]]:
    try:
        return manifests.read(store, key)
    except FileNotFoundError:
        return None, [Fault(key, "", "it is not in the store")]
    except CompalignError as error:
        return None, [Fault(key, "", f"its manifest cannot be read: {error}")]


def _taken_in(store: Store, key: str, found: Checked) -> list[Artifact]:
    """The artifact of a manifest key, noted with the faults of its manifest; empty where it cannot be used."""
    made, faults = _read(store, key)
    found.faults += faults
    if made is None:
        return []
    found.artifacts[key] = made
    return [made]


def _check_files(artifact: Artifact, redacted: Redacted, found: Checked) -> None:
    for name, facts in sorted(artifact.manifest["files"].items()):
        key = artifact.file_key(name)
        now: str | None = None
        size = 0
        try:
            now, size = digest(artifact.store, key)
        except FileNotFoundError:
            fault = Fault(key, "", "the file is missing")
        except CompalignError as error:
            found.faults.append(Fault(key, "", f"the file cannot be read: {error}"))
            continue
        else:
            fault = Fault(key, "", f"sha256 is {now}, the manifest says {facts['sha256']}")
        found.bytes += size
        by_request = redacted.get(key, Redaction.none(key)).explains(facts["sha256"], now)
        if now != facts["sha256"]:
            if by_request and _redactable(artifact, name, gone=now is None):
                found.redacted.append(key)
            else:
                found.faults.append(fault)
        elif not by_request:
            found.faults.append(Fault(key, "", RESTORED))
        elif size != facts["bytes"]:
            detail = f"is {facts['bytes']}, but the file has {size}"
            found.faults.append(Fault(artifact.manifest_key, f"files.{name}.bytes", detail))


def _redactable(artifact: Artifact, name: str, *, gone: bool) -> bool:
    """Whether a takedown ever rewrites such a file: pages, resharded tars, and tables that hold texts of pairs."""
    if gone or artifact.has_view(name):
        return artifact.has_view(name)
    if name.endswith(".tar"):
        return artifact.kind == "filtered_dataset"
    try:
        with seekable(artifact.store, artifact.file_key(name)) as stream:
            return bool(erase.identifying(pq.read_schema(stream).names))
    except (OSError, ValueError, CompalignError):  # no table
        return False


def _faults_of_link(link: Link) -> Iterator[Fault]:
    source, made = link.source, link.artifact
    if made is None:  # its own fault is named where it was read
        yield Fault(link.target, "inputs", f"{source.kind} {source.key} is not in the store or cannot be read")
        return
    where = made.manifest_key
    if made.data_version != source.data_version:
        detail = f"data version is {made.data_version}, but {link.target} used {source.data_version}"
        yield Fault(where, "data_version", detail)
    elif source.manifest_sha256 not in (None, made.manifest_sha256):
        yield Fault(where, "manifest", f"it is another one than {link.target} used: something in it was edited")
    if made.kind != source.kind:
        yield Fault(where, "kind", f"is {made.kind}, but {link.target} used a {source.kind}")
    if source.key == where and made.partition != source.partition:
        yield Fault(where, "partition", f"is {made.partition}, but {link.target} used {source.partition}")
