"""Work keys and digests: the names of work before it is done and of bytes once they exist.

A *work key* is known before the work and names its path; a *data version* is the digest of the
output and is what Dagster is told. Equal bytes keep everything downstream quiet.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the same value is always the same bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256 of `data`, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of `canonical_json(value)`, 64 hex digits."""
    return digest_bytes(canonical_json(value))


def work_key(kind: str, *, code_version: int, inputs: Iterable[Any], config: Mapping[str, Any]) -> str:
    """32 hex digits naming work: what it reads, the code that does it, the settings that change bytes.

    `inputs` are data versions (or JSON values holding them); their order counts.
    """
    return digest_json([kind, code_version, list(inputs), dict(config)])[:32]
