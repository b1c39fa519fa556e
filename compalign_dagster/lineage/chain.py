"""The chain of artifacts behind an artifact, verified from the store's files alone.

What belongs here: walking manifests from an artifact to everything it was made from and comparing what
is there with what they say. What does not: what a person wants to know of one pair, and the event log
of the orchestrator, which is never read.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compalign_dagster import artifacts
from compalign_dagster.artifacts import Artifact, Input, artifact_path
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Store
from compalign_dagster.versions import digest_json

_MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Link:
    """One input of one artifact: `source` was used to make `target` (a manifest key)."""

    target: str
    source: Input
    artifact: Artifact | None  # None when the source lies outside the store or is missing


def verify(
    artifact: Artifact,
    store: Store | None = None,
    *,
    outside: Callable[[Input], str | None] | None = None,
) -> list[str]:
    """What is wrong in the chain behind `artifact`, one sentence each; empty when all of it holds.

    Every file of every artifact is read and compared with its manifest, every manifest with its data
    version, every input with what its user says it used. What lies outside the store (landed shards,
    label exports) is read only by `outside`, which returns the data version it has now, or None when it
    is gone; without it such inputs are taken as stated. `store` is the artifact's own by default.
    """
    store = store or artifact.store
    problems = list(_problems_of(artifact))
    verified = {artifact.manifest_key}
    links = 0
    for link in walk(artifact, store):
        links += 1
        problems += _problems_of_link(link, store, outside)
        if link.artifact is not None and link.artifact.manifest_key not in verified:
            verified.add(link.artifact.manifest_key)
            problems += _problems_of(link.artifact)
    log.info("lineage: %d artifacts, %d links, %d problems", len(verified), links, len(problems))
    return list(dict.fromkeys(problems))


def walk(artifact: Artifact, store: Store | None = None) -> Iterator[Link]:
    """Every link of the chain, nearest first; an artifact used twice is walked into once."""
    store = store or artifact.store
    waiting, walked = [artifact], {artifact.manifest_key}
    while waiting:
        target = waiting.pop(0)
        for source in target.inputs:
            found = _artifact_of(source, store)
            yield Link(target.manifest_key, source, found)
            if found is not None and found.manifest_key not in walked:
                walked.add(found.manifest_key)
                waiting.append(found)


def manifest_key_of(source: Input) -> str | None:
    """The key of the manifest an input belongs to; None when the input is no artifact of a store.

    An input names a manifest, or a file `<artifact>/<digest>/<file>` of one.
    """
    if source.key.endswith(f"/{_MANIFEST}"):
        return source.key
    parts = source.key.split("/")
    inside = source.key.startswith(f"{source.kind}/") and len(parts) >= 4
    return "/".join([*parts[:-2], _MANIFEST]) if inside else None


def _artifact_of(source: Input, store: Store) -> Artifact | None:
    key = manifest_key_of(source)
    if key is None:
        return None
    try:
        return artifacts.load(store, key)
    except (CompalignError, ValueError):  # not JSON, or of another schema: reported with the link
        return None


def _problems_of_link(link: Link, store: Store, outside: Callable[[Input], str | None] | None) -> Iterator[str]:
    source = link.source
    where = f"{source.kind} {source.key}, input of {link.target}"
    if link.artifact is not None:
        if link.artifact.data_version != source.data_version:
            yield (f"{where}: data version is {link.artifact.data_version}, but {source.data_version} was used")
        if link.artifact.kind != source.kind:
            yield f"{where}: the artifact there is a {link.artifact.kind}"
        return
    key = manifest_key_of(source)
    if key is not None:
        yield f"{where}: {'its manifest cannot be read' if store.exists(key) else 'it is not in the store'}"
    elif outside is not None:
        now = outside(source)
        if now != source.data_version:
            state = "it is gone" if now is None else f"data version is {now}"
            yield f"{where}: {state}, but {source.data_version} was used"


def _problems_of(artifact: Artifact) -> Iterator[str]:
    """Whether an artifact is what its manifest says."""
    files = artifact.manifest["files"]
    stated = digest_json({name: files[name]["sha256"] for name in artifact.names()})
    if stated != artifact.data_version:
        yield f"{artifact.manifest_key}: data version is {artifact.data_version}, but its files give {stated}"
    place = artifact_path(artifact.kind, artifact.work_key, artifact.partition)
    if place != artifact.path:
        yield f"{artifact.manifest_key}: it names itself {place}"
    for name, facts in sorted(files.items()):
        key = artifact.file_key(name)
        try:
            found = _digest(artifact.store, key)
        except FileNotFoundError:
            yield f"{key}: the file is missing"
            continue
        if found != facts["sha256"]:
            yield f"{key}: sha256 is {found}, the manifest says {facts['sha256']}"


def _digest(store: Store, key: str) -> str:
    digest = hashlib.sha256()
    with store.open(key) as stream:
        while chunk := bytes(stream.read(_CHUNK_BYTES)):
            digest.update(chunk)
    return digest.hexdigest()
