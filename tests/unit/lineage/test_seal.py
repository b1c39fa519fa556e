"""Seals, as their owners make them and as strangers check them."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.lineage import chain, keys, seal
from compalign_dagster.versions import canonical_json
from tests.conftest import ROOT
from tests.support.small_version import SmallStore, small_store

pytestmark = [pytest.mark.slow]
PAGE, SCHEMA = ROOT / "docs" / "verifying.md", ROOT / "docs" / "schema" / "release-v1.json"

_NO_SOCKETS = """
import socket, sys
def refused(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"):
        raise OSError("no network here")
sys.addaudithook(refused)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SmallStore:
    made = small_store(tmp_path_factory.mktemp("seal"), batches=1, shards=1, pairs=6)
    made.filter()
    return made


@pytest.fixture
def signed(small, tmp_path) -> Path:
    """A folder with a key, its trusted file and a seal of the only version."""
    keys.new_key(tmp_path / "key.pem", "release team")
    version = small.filter().artifact
    said = seal.statement(version, chain.check(version))
    (tmp_path / "seal.json").write_bytes(seal.sign(said, keys.load_signer(tmp_path / "key.pem")))
    return tmp_path


def snippet() -> str:
    """The program on the page."""
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    return found


def stranger(folder: Path, store: Path, program: str | None = None) -> subprocess.CompletedProcess:
    """The page's program, run without a network and without this project."""
    (folder / "check.py").write_text(_NO_SOCKETS + (program or snippet()))
    arguments = [folder / "check.py", folder / "seal.json", folder / "key.pem.trusted.json", store]
    return subprocess.run(
        [sys.executable, "-P", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
    )


def test_the_page_prints_at_most_twenty_lines_that_verify_a_seal_offline(small, signed):
    assert len([line for line in snippet().splitlines() if line.strip()]) <= 20
    assert "compalign_dagster" not in snippet()
    done = stranger(signed, small.home / "store")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("are as release team sealed them")


def test_the_pages_program_refuses_changed_files_foreign_keys_and_revoked_ones(small, signed, tmp_path):
    version = small.filter().artifact
    path = small.store.path(version.file_key("cuts.parquet"))
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"!")
    try:
        done = stranger(signed, small.home / "store")
    finally:
        path.write_bytes(before)
    assert done.returncode != 0
    assert "cuts.parquet" in done.stderr

    trusted = json.loads((signed / "key.pem.trusted.json").read_bytes())
    for entry in trusted["keys"].values():
        entry["revoked"] = "lost"
    (signed / "key.pem.trusted.json").write_text(json.dumps(trusted))
    assert stranger(signed, small.home / "store").returncode != 0

    keys.new_key(signed / "other.pem", "somebody")
    (signed / "key.pem.trusted.json").write_bytes((signed / "other.pem.trusted.json").read_bytes())
    done = stranger(signed, small.home / "store")
    assert "Accepted signatures do not match threshold" in done.stderr or "VerificationError" in done.stderr


def test_the_programs_run_really_has_no_network(signed, small):
    done = stranger(signed, small.home / "store", "socket.create_connection(('127.0.0.1', 9))")
    assert "no network here" in done.stderr


def test_the_schema_in_the_documentation_is_the_predicates_and_fits_what_is_signed(small, signed):
    if os.environ.get("UPDATE_DOCS"):
        SCHEMA.write_text(json.dumps(seal.json_schema(), indent=2) + "\n")
    schema = json.loads(SCHEMA.read_text())
    assert schema == seal.json_schema()
    said = json.loads(seal.read(signed / "seal.json").payload)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(said, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**said, "predicate": {}}, schema)
    assert said["_type"] == "https://in-toto.io/Statement/v1"


def test_a_seal_of_this_version_by_a_trusted_key_has_no_fault(small, signed, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    version = small.filter().artifact
    trusted = keys.load_trusted(signed / "key.pem.trusted.json")
    assert seal.check("seal.json", seal.read(signed / "seal.json"), trusted, version, chain.check(version)) == []


def test_a_private_key_is_its_owners_alone_and_is_never_overwritten(tmp_path):
    keys.new_key(tmp_path / "key.pem", "ada")
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert b"PRIVATE" not in (tmp_path / "key.pem.trusted.json").read_bytes()
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(InputError, match="never overwritten"):
        keys.new_key(tmp_path / "key.pem", "ada")
    assert (tmp_path / "key.pem").read_bytes() == before


def test_no_private_key_is_left_behind_without_its_public_one(tmp_path):
    (tmp_path / "key.pem.trusted.json").write_bytes(b"somebody else's")
    with pytest.raises(InputError, match="never overwritten"):
        keys.new_key(tmp_path / "key.pem", "ada")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem.trusted.json"]
    assert (tmp_path / "key.pem.trusted.json").read_bytes() == b"somebody else's"


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"not json", b'{"payload": "x", "payloadType": "y", "signatures": 3}', b"[" * 100_000,
     b'{"payload": "eA==", "payloadType": "t", "signatures": [{"keyid": 1}]}',
     b'{"payload": 7, "payloadType": "t", "signatures": []}'],
)  # fmt: skip
def test_what_is_no_seal_is_refused_in_one_line(tmp_path, body):
    (tmp_path / "seal.json").write_bytes(body)
    with pytest.raises(InputError, match="DSSE") as refused:
        seal.read(tmp_path / "seal.json")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"keys": {"a": {"name": "x"}}}', b'{"keys": {}, "more": 1}'])
def test_what_is_no_file_of_trusted_keys_is_refused(tmp_path, body):
    (tmp_path / "trusted.json").write_bytes(body)
    with pytest.raises(InputError, match="trusted keys"):
        keys.load_trusted(tmp_path / "trusted.json")


def test_a_file_that_is_no_private_key_is_refused_and_not_printed(tmp_path):
    (tmp_path / "key.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nsecret words\n-----END PRIVATE KEY-----\n")
    with pytest.raises(InputError, match="ed25519") as refused:
        keys.load_signer(tmp_path / "key.pem")
    assert "secret" not in str(refused.value)
    with pytest.raises(InputError, match="No such file"):
        keys.load_signer(tmp_path / "none.pem")


def test_one_trusted_signature_among_others_is_enough(small, signed):
    version = small.filter().artifact
    keys.new_key(signed / "second.pem", "somebody")
    envelope = seal.read(signed / "seal.json")
    envelope.sign(keys.load_signer(signed / "second.pem"))
    (signed / "seal.json").write_bytes(canonical_json(envelope.to_dict()))
    trusted = keys.load_trusted(signed / "key.pem.trusted.json")
    assert seal.check("seal.json", seal.read(signed / "seal.json"), trusted, version, chain.check(version)) == []
