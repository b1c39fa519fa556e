"""What a manifest must look like before anything of it is believed, and what of it can be checked alone.

What belongs here: one manifest's own words. What does not: the files it names and the artifacts behind it
(`chain.py`).
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from compalign_dagster.artifacts import SCHEMA_VERSION, Artifact, artifact_path
from compalign_dagster.errors import InputError
from compalign_dagster.store import Store
from compalign_dagster.store.base import checked_parts
from compalign_dagster.versions import canonical_json, digest_json

_FOLDER_DIGITS = 16
_MOST_SHOWN = 5
_MANIFEST = "manifest.json"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=4096)]


def _inside(name: str) -> str:
    """A relative path that stays where it is put; pydantic wants a `ValueError` of any other."""
    try:
        checked_parts(name)
    except InputError as error:
        raise ValueError(f"{error.found}: {name!r}") from error
    return name


FileName = Annotated[Name, AfterValidator(_inside)]


@dataclass(frozen=True, order=True)
class Fault:
    """One thing that is not as it must be: the store key of the file, the field or column in it, and what."""

    where: str
    field: str
    detail: str

    def __str__(self) -> str:
        """One line, safe for a terminal: names and values come from files."""
        text = f"{self.where}: {self.field}: {self.detail}" if self.field else f"{self.where}: {self.detail}"
        return "".join(character if character.isprintable() else "?" for character in text)


def key_of(file_key: str) -> str:
    """The manifest key of the artifact that a file belongs to: `<artifact>/<digest>/<file>`."""
    return "/".join([*file_key.split("/")[:-2], _MANIFEST])


@contextmanager
def blaming(faults: list[Fault], where: str, what: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into a fault of this file."""
    try:
        yield
    except Exception as error:  # an altered file makes every library raise what it likes
        first = next(iter(str(error).splitlines()), "")
        faults.append(Fault(where, what, f"cannot be used: {type(error).__name__}: {first}"))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _File(_Strict):
    sha256: Sha256
    bytes: int = Field(ge=0)
    path: FileName
    view: bool


class _Input(_Strict):
    kind: Name
    key: Name
    data_version: Name
    partition: Name | None
    manifest_sha256: Sha256 | None = None


class _Manifest(_Strict):
    schema_version: Literal[SCHEMA_VERSION]  # type: ignore[valid-type]
    kind: Name
    partition: Name | None
    work_key: Name
    code_version: int
    data_version: Sha256
    inputs: list[_Input]
    config: dict[str, Any]
    facts: dict[str, Any]
    files: dict[FileName, _File]
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$")


def read(store: Store, key: str) -> tuple[Artifact | None, list[Fault]]:
    """The artifact of a manifest key, and what is wrong with the manifest; None where it cannot be used at all.

    Raises a `StoreError` when there is no such object or it cannot be read.
    """
    data = store.read(key)
    try:
        value = json.loads(data)
        written = canonical_json(value)
    except (ValueError, RecursionError) as error:
        return None, [Fault(key, "", f"its manifest cannot be read: {error}")]
    faults = _malformed(key, value)
    if faults:
        return None, faults
    artifact = Artifact(store, key.removesuffix(f"/{_MANIFEST}"), value)
    if written != data:
        faults.append(Fault(key, "", "the bytes are not the ones that the project writes for these values"))
    return artifact, [*faults, *_contradictions(artifact)]


def _malformed(key: str, value: Any) -> list[Fault]:
    try:
        _Manifest.model_validate(value)
    except ValidationError as error:
        return list(_faults_of(key, error))
    return []


def _faults_of(key: str, error: ValidationError) -> Iterable[Fault]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    for problem in found[:_MOST_SHOWN]:
        yield Fault(key, ".".join(map(str, problem["loc"])), problem["msg"])
    if len(found) > _MOST_SHOWN:
        yield Fault(key, "", f"and {len(found) - _MOST_SHOWN} more fields")


def _contradictions(artifact: Artifact) -> Iterator[Fault]:
    """Where a well-formed manifest says two things."""
    key, files = artifact.manifest_key, artifact.manifest["files"]
    stated = digest_json({name: files[name]["sha256"] for name in artifact.names()})
    if stated != artifact.data_version:
        yield Fault(key, "data_version", f"data version is {artifact.data_version}, but its files give {stated}")
    place = artifact_path(artifact.kind, artifact.work_key, artifact.partition)
    if place != artifact.path:
        yield Fault(key, "kind, partition, work_key", f"it names itself {place}")
    for name, facts in sorted(files.items()):
        folder = facts["sha256"] if facts["view"] else artifact.data_version
        expected = f"{folder[:_FOLDER_DIGITS]}/{name}"
        if facts["path"] != expected:
            yield Fault(key, f"files.{name}.path", f"is {facts['path']}, and not {expected}")
