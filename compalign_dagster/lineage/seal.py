"""The seal of a release: one DSSE file that strangers can check without this project and without a network.

What belongs here: the statement, signing it, and whether a seal is of a given version. What does not: keys
(`keys.py`), and whether the version itself is sound (`verify.py`). The envelope is DSSE v1, the statement in-toto
v1; the predicate is ours, and its JSON schema is `docs/schema/release-v1.json`.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import InputError
from compalign_dagster.lineage import pointers, redaction
from compalign_dagster.lineage.chain import Checked
from compalign_dagster.lineage.keys import TrustedKey, bounded, public_key
from compalign_dagster.lineage.manifests import Fault, Sha256
from compalign_dagster.store import Store
from compalign_dagster.versions import canonical_json, digest_json

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner, Signature

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:compalign-dagster:release:v1"
_MOST_BYTES = 256 << 20  # a version of a hundred thousand batches has some 30 MB of subjects


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Digest(_Strict):
    """How a subject is recognised."""

    sha256: Sha256


class Subject(_Strict):
    """A file of the store, by its key."""

    name: str
    digest: Digest


class Dataset(_Strict):
    """The version as its manifest describes it."""

    manifest: str
    data_version: Sha256
    work_key: str
    code_version: int
    created: str
    model_version: str | None
    pairs: int
    kept: int
    dropped: int
    quarantined: int
    policy: dict[str, Any]


class Chain(_Strict):
    """Everything behind the version: `sha256` is of the canonical JSON of [[name, digest], ...], sorted."""

    artifacts: int
    artifacts_sha256: Sha256 = Field(description="Names are manifest keys, digests those of the manifests.")
    outside: int
    outside_sha256: Sha256 = Field(description="Names are URLs of landed shards and label exports.")


class Release(_Strict):
    """The predicate: what a release is, and what people had decided when it was sealed."""

    dataset: Dataset
    chain: Chain
    decisions: dict[str, list[Sha256]] = Field(
        description="Of each decided fact the SHA-256 of every version, oldest first: none of them may go or change."
    )
    sealed: str = Field(description="ISO 8601, UTC, by the clock of who sealed.")
    software: str


class Statement(_Strict):
    """An in-toto Statement v1 about one release."""

    type: Literal[STATEMENT_TYPE] = Field(alias="_type")  # type: ignore[valid-type]
    subject: list[Subject] = Field(min_length=1)
    predicateType: Literal[PREDICATE_TYPE]  # type: ignore[valid-type]  # noqa: N815
    predicate: Release


def json_schema() -> dict[str, Any]:
    """The JSON schema of the statement with its predicate."""
    made = Statement.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": PREDICATE_TYPE, **made}


def statement(version: Artifact, chain: Checked) -> bytes:
    """What a seal says of a version, as canonical JSON; `chain` is what a walk that found no fault saw behind it."""
    release = Release(
        dataset=_dataset(version),
        chain=_chain(chain),
        decisions=pointers.heads(version.store),
        sealed=datetime.now(UTC).isoformat(timespec="seconds"),
        software=f"compalign-dagster {metadata.version('compalign-dagster')}",
    )
    subjects = _subjects(version, chain)
    made = Statement(
        type=STATEMENT_TYPE,
        subject=[Subject(name=name, digest=Digest(sha256=sha256)) for name, sha256 in subjects.items()],
        predicateType=PREDICATE_TYPE,
        predicate=release,
    )
    return canonical_json(made.model_dump(by_alias=True))


def sign(payload: bytes, signer: "CryptoSigner") -> bytes:
    """The DSSE envelope around a statement, as it is written to a file."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return canonical_json(envelope.to_dict())


def check(
    where: str, envelope: "Envelope", trusted: Mapping[str, TrustedKey], version: Artifact, chain: Checked
) -> list[Fault]:
    """Why a seal, called `where`, is no proof of this version; empty when it is. `chain` is as for `statement`."""
    refused = list(_refused(where, envelope, trusted))
    if refused:
        return refused
    if envelope.payload_type != PAYLOAD_TYPE:
        return [Fault(where, "payloadType", f"is {envelope.payload_type}, and not {PAYLOAD_TYPE}")]
    try:
        said = Statement.model_validate_json(envelope.payload)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return [Fault(where, ".".join(map(str, item["loc"])), item["msg"]) for item in found]
    return [
        *_other_subjects(where, said, version, chain),
        *pointers.moved(version.store, said.predicate.decisions),
    ]


def redacted_since(envelope: "Envelope", store: Store) -> int:
    """How many records of redactions a store has beyond those that were sealed: files may differ by their request."""
    said = Statement.model_validate_json(envelope.payload).predicate.decisions
    return max(0, len(pointers.entries(store, redaction.DECISION)[0]) - len(said.get(redaction.DECISION, ())))


def read(path: Path) -> "Envelope":
    """The envelope in a file. `InputError` for a file that is none."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import Error

    data = bounded(path, "seal", _MOST_BYTES)
    try:
        return Envelope.from_dict(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Error) as error:
        raise InputError(
            f"seal {path}",
            expected="a DSSE envelope in JSON",
            found=" ".join(str(error).split()) or type(error).__name__,
            remedy="Give the file that `compalign seal` wrote.",
        ) from error


def _refused(where: str, envelope: "Envelope", trusted: Mapping[str, TrustedKey]) -> Iterator[Fault]:
    """Why no signature counts; nothing when one of a trusted key fits."""
    why = [_why_not(signature, envelope, trusted.get(signature.keyid)) for signature in envelope.signatures.values()]
    if any(reason is None for reason in why):
        return
    for reason in why or ["nobody signed it"]:
        yield Fault(where, "signatures", str(reason))


def _why_not(signature: "Signature", envelope: "Envelope", entry: TrustedKey | None) -> str | None:
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError

    if entry is None:
        return f"signed by the key {signature.keyid}, which is not among the trusted ones"
    if entry.revoked is not None:
        return f"signed by {entry.name} (key {signature.keyid}), whose key was revoked: {entry.revoked}"
    try:
        public_key(signature.keyid, entry).verify_signature(signature, envelope.pae())
    except (UnverifiedSignatureError, VerificationError):
        return f"the signature of {entry.name} (key {signature.keyid}) does not fit what is sealed"
    return None


def _other_subjects(where: str, said: Statement, version: Artifact, chain: Checked) -> Iterator[Fault]:
    sealed = said.predicate.dataset.manifest
    if sealed != version.manifest_key:
        yield Fault(where, "subject", f"the seal is of {sealed}, and not of {version.manifest_key}")
        return
    for part, stated_part, found_part in (
        ("dataset", said.predicate.dataset, _dataset(version)),
        ("chain", said.predicate.chain, _chain(chain)),
    ):
        for name, value in found_part:
            if getattr(stated_part, name) != value:
                detail = f"{part}.{name} is {value!r}, but {getattr(stated_part, name)!r} was sealed"
                yield Fault(version.manifest_key, f"{part}.{name}", detail[:500])
    stated = {subject.name: subject.digest.sha256 for subject in said.subject}
    found = _subjects(version, chain)
    for name in sorted({*stated, *found}):
        if name not in found:
            yield Fault(name, "", "it was sealed, but is no part of the version or is not in the store")
        elif name not in stated:
            yield Fault(name, "", "it is part of the version, but was not sealed")
        elif stated[name] != found[name]:
            yield Fault(name, "", f"sha256 is {found[name]}, but {stated[name]} was sealed")


def _dataset(version: Artifact) -> Dataset:
    facts = version.facts
    return Dataset(
        manifest=version.manifest_key,
        data_version=version.data_version,
        work_key=version.work_key,
        code_version=version.manifest["code_version"],
        created=version.manifest["created"],
        model_version=facts.get("model_version"),
        policy=facts["policy"],
        **{name: facts[name] for name in ("pairs", "kept", "dropped", "quarantined")},
    )


def _chain(chain: Checked) -> Chain:
    outside = sorted({(item.key, item.data_version) for item in chain.outside})
    artifacts = sorted((key, made.manifest_sha256) for key, made in chain.artifacts.items())
    return Chain(
        artifacts=len(artifacts),
        artifacts_sha256=digest_json(artifacts),
        outside=len(outside),
        outside_sha256=digest_json(outside),
    )


def _subjects(version: Artifact, chain: Checked) -> dict[str, str]:
    """The version's manifest, its data files, and the manifest of every list: what a release is made of, by key."""
    files = {version.file_key(name): version.manifest["files"][name]["sha256"] for name in version.names()}
    lists = {key: made.manifest_sha256 for key, made in chain.artifacts.items() if made.kind == "ranked_pairs"}
    return {version.manifest_key: version.manifest_sha256, **files, **lists}
