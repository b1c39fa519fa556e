"""The small facts that people decide, read from their files: numbered without a gap, and pointing where they say.

What belongs here: `current`, the policy in force, the promoted model, the batch log, the newest of each kind.
What does not: what they point at (`chain.py`).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl import batches
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage import redaction
from compalign_dagster.lineage.manifests import Fault
from compalign_dagster.reward import promoted
from compalign_dagster.scoring import in_force
from compalign_dagster.selection import prune
from compalign_dagster.store import Store
from compalign_dagster.versions import canonical_json, digest_bytes

CURRENT, POLICY = "current", "selection_policy"
DECIDED = (CURRENT, POLICY, promoted.DECISION, batches.NAME, redaction.TAKEDOWNS, redaction.DECISION,
           in_force.DECISION, prune.DECISION)  # fmt: skip
"""What people decide. Seals of an earlier release tell of fewer."""
_FIELDS = {"version", "value", "decided"}
_POINTERS = {
    "manifest": {"data_version": "data_version", "manifest_sha256": "manifest_sha256"},
    "plan": {"plan_sha256": "manifest_sha256"},
}
_ORDERED = {"policy": POLICY, "ledger": "latest/score_ledger"}


@dataclass(frozen=True)
class Entry:
    """One version of a decided fact as its file has it."""

    key: str
    version: int
    value: dict[str, Any]
    sha256: str


def entries(store: Store, name: str) -> tuple[list[Entry], list[Fault]]:
    """Every version of a fact in the order of the files, and what is wrong with the files."""
    found: list[Entry] = []
    faults: list[Fault] = []
    folder = f"decisions/{name}/"
    listed = [item for item in store.list(folder) if "/" not in item.key.removeprefix(folder)]
    for place, item in enumerate(listed, start=1):
        expected = f"decisions/{name}/{place:08d}.json"
        if item.key != expected:
            faults.append(Fault(expected, "", f"the file is missing, though {item.key} is there"))
            break
        try:
            entry = _entry(item.key, place, store.read(item.key))
        except (CompalignError, ValueError, RecursionError) as error:
            faults.append(Fault(item.key, "", str(error)))
        else:
            found.append(entry)
    return found, faults


def check(store: Store, artifacts: Iterable[Artifact], version: Artifact) -> list[Fault]:
    """What is wrong with the facts that `version` and the artifacts behind it hang on."""
    known = {artifact.manifest_key: artifact for artifact in artifacts}
    kinds = {f"latest/{'/'.join(filter(None, (item.kind, item.partition)))}" for item in known.values()}
    facts: dict[str, list[Entry]] = {}
    faults: list[Fault] = []
    for name in (*DECIDED, *sorted(kinds)):
        facts[name], wrong = entries(store, name)
        faults += wrong
        for entry in facts[name]:
            faults += _pointing(entry, known)
    faults += _going_back(facts[CURRENT])
    newest = facts[CURRENT][-1:]
    for entry in newest:
        if entry.value.get("manifest") == version.manifest_key:
            faults += _as_decided(entry, facts, version)
    return faults


def heads(store: Store) -> dict[str, list[str]]:
    """SHA-256 of every version of what people decide, by fact: what a seal holds of them."""
    return {name: [entry.sha256 for entry in entries(store, name)[0]] for name in DECIDED}


def moved(store: Store, sealed: dict[str, list[str]]) -> Iterator[Fault]:
    """Decisions that are gone or other ones, of those that `heads` gave."""
    for name, digests in sealed.items():
        for place, sha256 in enumerate(digests, start=1):
            key = f"decisions/{name}/{place:08d}.json"
            try:
                found = digest_bytes(store.read(key))
            except CompalignError:
                yield Fault(key, "", "it was decided when the release was sealed, and cannot be read now")
            else:
                if found != sha256:
                    yield Fault(key, "", f"sha256 is {found}, but {sha256} was sealed")


def _entry(key: str, place: int, data: bytes) -> Entry:
    value = json.loads(data)
    if not isinstance(value, dict) or set(value) != _FIELDS or not isinstance(value["value"], dict):
        raise ValueError(f"expected an object of {', '.join(sorted(_FIELDS))}")
    if value["version"] != place or isinstance(value["version"], bool):
        raise ValueError(f"version: it calls itself {value['version']!r}")
    if not isinstance(value["decided"], str):
        raise ValueError("decided: expected a time")
    if canonical_json(value) != data:
        raise ValueError("the bytes are not the ones that the project writes for these values")
    return Entry(key, place, value["value"], digest_bytes(data))


def _pointing(entry: Entry, known: dict[str, Artifact]) -> Iterator[Fault]:
    value = entry.value
    for pointer, stated in _POINTERS.items():
        artifact = known.get(str(value.get(pointer)))
        if artifact is None:
            continue
        for name, what in stated.items():
            if name in value and value[name] != getattr(artifact, what):
                detail = f"is {value[name]}, but {artifact.manifest_key} has {getattr(artifact, what)}"
                yield Fault(entry.key, f"value.{name}", detail)
    found = value.get("cascade")
    cascade = found if isinstance(found, dict) else {}
    cheap = known.get(str(cascade.get("model")))
    if cheap is not None and cascade.get("model_version") != cheap.facts.get("model_version"):
        yield Fault(entry.key, "value.cascade.model_version", f"is not the one of {cheap.manifest_key}")


def _going_back(current: Sequence[Entry]) -> Iterator[Fault]:
    """Neither a run nor a person makes the numbers of `current` go back: a restored version keeps them."""
    for before, after in pairwise(current):
        if after.value == before.value and "action" not in after.value:
            yield Fault(after.key, "value", "says what the one before says: nobody decides that, it was put back")
        for name in _ORDERED:
            old, new = before.value.get(name, 0), after.value.get(name, 0)
            if new < old:
                detail = f"goes back from {old} to {new}: an older version was put in place of a newer one"
                yield Fault(after.key, f"value.{name}", detail)


def _as_decided(entry: Entry, facts: dict[str, list[Entry]], version: Artifact) -> Iterator[Fault]:
    """Whether `current` was moved to a version of the policy and the ledger that it names."""
    if "action" in entry.value:  # a person restored it, whatever its policy and ledger
        return
    number = entry.value.get("policy", 0)
    policies = facts[POLICY]
    if 0 < number <= len(policies) and _policy(policies[number - 1]) != version.facts.get("policy"):
        yield Fault(policies[number - 1].key, "value", f"is not the policy that {version.manifest_key} was made by")
    elif number > len(policies):
        yield Fault(entry.key, "value.policy", f"is {number}, but only {len(policies)} policies were decided")
    ledgers = facts.get(_ORDERED["ledger"], [])
    used = {item.key for item in version.inputs if item.kind == "score_ledger"}
    number = entry.value.get("ledger", 0)
    if number > len(ledgers):
        yield Fault(entry.key, "value.ledger", f"is {number}, but only {len(ledgers)} ledgers were made")
    elif number and ledgers[number - 1].value.get("manifest") not in used:
        yield Fault(ledgers[number - 1].key, "value.manifest", f"is not the ledger that {version.manifest_key} used")


def _policy(entry: Entry) -> dict[str, Any]:
    """A decided policy without who adopted it and why."""
    return {name: value for name, value in entry.value.items() if name not in ("by", "why")}
