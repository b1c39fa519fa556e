"""Keys that seal releases: making one, and the file that says whose keys are trusted or were revoked.

What belongs here: key files. What does not: what is signed (`seal.py`). Keys and signatures are those of
`securesystemslib`, so that any tool built on it reads them. A private key is a PEM file (PKCS #8, ed25519).
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compalign_dagster.errors import InputError

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, Key

_MOST_BYTES = 1 << 20
_ENVELOPE_REMEDY = "Install the extra `seal`: pip install 'compalign-dagster[seal]'."


class _Public(BaseModel):
    model_config = ConfigDict(extra="forbid")

    public: str = Field(pattern="^[0-9a-f]{64}$")


class TrustedKey(BaseModel):
    """One entry of a file of trusted keys. `revoked` says why the key is not to be believed."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    keytype: str = Field(pattern="^ed25519$")
    scheme: str = Field(pattern="^ed25519$")
    keyval: _Public
    revoked: str | None = None


class TrustedKeys(BaseModel):
    """A file of trusted keys, by key id."""

    model_config = ConfigDict(extra="forbid")

    keys: dict[str, TrustedKey]


def new_key(path: Path, name: str) -> Path:
    """Write a new private key, readable by its owner alone, and `<path>.trusted.json` with the public one; its path.

    `InputError` where either file exists already.
    """
    from securesystemslib.signer import CryptoSigner

    signer = CryptoSigner.generate_ed25519()
    public = path.with_name(f"{path.name}.trusted.json")
    entry = {"name": name, "revoked": None, **signer.public_key.to_dict()}
    trusted = TrustedKeys.model_validate({"keys": {signer.public_key.keyid: entry}})
    write_new(path, signer.private_bytes, "private key", 0o600)
    try:
        write_new(public, json.dumps(trusted.model_dump(), indent=2).encode() + b"\n", "trusted keys")
    except BaseException:
        path.unlink()  # nobody could ever verify what it signs
        raise
    return public


def load_signer(path: Path) -> "CryptoSigner":
    """The private key in a PEM file. `InputError` for anything but an ed25519 key without a password."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    data = bounded(path, "private key")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise _no_key(path, str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "a key of another kind")
    return CryptoSigner(key)


def load_trusted(path: Path) -> dict[str, TrustedKey]:
    """Trusted and revoked keys by id. `InputError` for a file that is not one."""
    try:
        return TrustedKeys.model_validate_json(bounded(path, "trusted keys")).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise InputError(
            f"trusted keys {path}",
            expected="JSON as `compalign seal --new-key` writes it",
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            remedy="Merge the entries of the .trusted.json files of the people you trust under `keys`.",
        ) from None


def public_key(keyid: str, entry: TrustedKey) -> "Key":
    """The key as the library verifies with it."""
    from securesystemslib.signer import SSlibKey

    return SSlibKey.from_dict(keyid, entry.model_dump(include={"keytype", "scheme", "keyval"}))


def require_library() -> None:
    """`InputError` where the extra that signs and verifies is not installed."""
    try:
        import cryptography  # noqa: F401
        import securesystemslib  # noqa: F401
    except ImportError as error:
        raise InputError("seals", expected="securesystemslib", found=str(error), remedy=_ENVELOPE_REMEDY) from error


def bounded(path: Path, what: str, most: int = _MOST_BYTES) -> bytes:
    """A file of at most `most` bytes. `InputError` where it cannot be read or is longer."""
    try:
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise InputError(
            f"{what} {path}", expected="a file", found=error.strerror or str(error), remedy="Check the path."
        ) from error
    if len(data) > most:
        raise InputError(f"{what} {path}", expected=f"at most {most} bytes", found="more", remedy="Check the path.")
    return data


def write_new(path: Path, data: bytes, what: str, mode: int = 0o644) -> None:
    """Write a file that is not there yet. `InputError` where it is or cannot be written; nothing is left then."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(data)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        raise InputError(
            f"{what} {path}",
            expected="a new file in a folder that is there",
            found=error.strerror or str(error),
            remedy="Choose another name: this is never overwritten.",
        ) from error


def _no_key(path: Path, found: str) -> InputError:
    return InputError(
        f"private key {path}",
        expected="an ed25519 key in PEM without a password",
        found=" ".join(found.split()),
        remedy="Make one: `compalign seal --new-key FILE`.",
    )
