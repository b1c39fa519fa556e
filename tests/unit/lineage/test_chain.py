import json

import pyarrow as pa
import pytest

from compalign_dagster import artifacts
from compalign_dagster.artifacts import Input
from compalign_dagster.lineage import redo
from compalign_dagster.lineage.chain import check, verify
from compalign_dagster.lineage.redaction import Change, record, redactions
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import canonical_json, digest_bytes
from tests.support.tampering import parquet_bytes

LANDED = Input("landed_shard", "/landing/sample/00000.tar", "tar 1")


def publish(store, kind, inputs, text="data"):
    return artifacts.publish(
        store,
        kind,
        f"{kind}-work",
        {"data.parquet": f"{kind} {text}".encode()},
        code_version=1,
        inputs=inputs,
        config={},
        facts={},
        views={"page.html": f"<p>{kind}".encode()},
    )


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


@pytest.fixture
def chain(store):
    """A diamond: dataset from ledger from scores from (index, model); the model saw the index too."""
    index = publish(store, "raw_crawl_shards", [LANDED])
    model = publish(store, "reward_model", [index.as_input()])
    by_file = Input("raw_crawl_shards", index.file_key("data.parquet"), index.data_version)
    scores = publish(store, "scored_shards", [by_file, model.as_input()])
    ledger = publish(store, "score_ledger", [scores.as_input()])
    return [publish(store, "filtered_dataset", [ledger.as_input()]), ledger, scores, model, index]


def test_an_untouched_chain_has_no_problems(chain):
    assert verify(chain[0]) == []


def test_every_link_is_walked_and_every_artifact_once(chain):
    found = check(chain[0])
    assert [made.kind for made in found.artifacts.values()] == [
        "filtered_dataset",
        "score_ledger",
        "scored_shards",
        "raw_crawl_shards",
        "reward_model",
    ]
    assert (found.links, found.outside) == (6, [LANDED])


@pytest.mark.parametrize("at", range(5))
def test_one_changed_byte_anywhere_is_found_and_named(store, chain, at):
    key = chain[at].file_key("data.parquet")
    path = store.path(key)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    (problem,) = verify(chain[0])
    assert key in problem


@pytest.mark.parametrize("at", range(1, 5))
def test_a_missing_artifact_is_named(store, chain, at):
    store.path(chain[at].manifest_key).unlink()
    problems = verify(chain[0])
    assert problems
    assert all(chain[at].path in problem for problem in problems)


def test_a_missing_or_altered_file_of_any_kind_is_a_problem(store, chain):
    store.path(chain[2].file_key("data.parquet")).unlink()
    store.path(chain[3].file_key("page.html")).write_bytes(b"<p>another")
    assert len(verify(chain[0])) == 2


def test_an_artifact_made_again_with_other_bytes_is_not_what_was_used(store, chain):
    model = chain[3]
    for name in ("data.parquet", "page.html"):
        store.path(model.file_key(name)).unlink()
    store.path(model.manifest_key).unlink()
    publish(store, "reward_model", model.inputs, "other")
    (problem,) = verify(chain[0])
    assert "reward_model" in problem
    assert model.data_version in problem


def test_a_rewritten_manifest_does_not_hide_a_changed_file(store, chain):
    ledger = chain[1]
    manifest = json.loads(store.read(ledger.manifest_key))
    manifest["files"]["data.parquet"]["sha256"] = artifacts.digest_bytes(b"forged")
    store.path(ledger.file_key("data.parquet")).write_bytes(b"forged")
    store.path(ledger.manifest_key).write_text(json.dumps(manifest))
    problems = verify(chain[0])
    assert any("data version" in problem and ledger.manifest_key in problem for problem in problems)
    assert all(ledger.path in problem for problem in problems)


def test_a_manifest_that_was_edited_where_its_data_version_does_not_look_is_named(store, chain):
    ledger = chain[1]
    edited = ledger.manifest | {"facts": {"rows": 7}}
    store.path(ledger.manifest_key).write_bytes(canonical_json(edited))
    (problem,) = verify(chain[0])
    assert ledger.manifest_key in problem
    assert "edited" in problem


def test_a_manifest_of_another_shape_is_named_with_the_field(store, chain):
    scores = chain[2]
    broken = scores.manifest | {"files": {"data.parquet": {"sha256": "f" * 64, "bytes": "many"}}}
    store.path(scores.manifest_key).write_bytes(canonical_json(broken))
    problems = verify(chain[0])
    assert any(scores.manifest_key in problem and "files.data.parquet.bytes" in problem for problem in problems)


def redact(store, artifact, name, now):
    """Give a file other bytes (None: none) and record that a takedown asked for that; its key."""
    key = artifact.file_key(name)
    sha256 = None if now is None else digest_bytes(now)
    record(store, [Change(key, artifact.manifest["files"][name]["sha256"], sha256, rows=1)], request="r-1")
    store.delete(key)
    if now is not None:
        store.put_new(key, now)
    return key


EMPTIED = parquet_bytes(pa.table({"pair_id": ["1" * 32], "caption": [""]}))


def test_a_file_that_a_recorded_takedown_rewrote_is_redacted_and_any_other_bytes_are_not(store, chain):
    key = redact(store, chain[4], "data.parquet", EMPTIED)
    found = check(chain[0], redacted=redactions(store))
    assert (found.faults, found.redacted) == ([], [key])
    assert verify(chain[0]) == []
    for data in (EMPTIED + b"!", b"raw_crawl_shards data"):  # other bytes, and those that were to go
        store.path(key).write_bytes(data)
        (problem,) = verify(chain[0])
        assert key in problem


@pytest.mark.parametrize(
    ("kind", "name", "now"),
    [
        ("reward_model", "data.parquet", None),
        ("reward_model", "w.safetensors", b"other weights"),
        ("reward_model", "shards/0.tar", b"a tar"),
        ("score_ledger", "data.parquet", parquet_bytes(pa.table({"pair_id": ["1" * 32], "reward": [1.0]}))),
        ("filtered_dataset", "policy.json", b"{}"),
    ],
)
def test_a_forged_record_explains_no_file_that_a_takedown_never_rewrites(store, kind, name, now):
    made = artifacts.publish(store, kind, "w", {name: b"true"}, code_version=1, inputs=[], config={}, facts={})
    key = redact(store, made, name, now)
    found = check(made, redacted=redactions(store))
    assert [fault.where for fault in found.faults] == [key]
    assert found.redacted == []


def test_a_manifest_whose_files_would_leave_their_folder_is_refused(store, chain):
    scores = chain[2]
    files = {"../../pwned": scores.manifest["files"]["data.parquet"]}
    store.path(scores.manifest_key).write_bytes(canonical_json(scores.manifest | {"files": files}))
    assert any(scores.manifest_key in problem and "climbs" in problem for problem in verify(chain[0]))
    assert scores.manifest_key not in check(chain[0]).artifacts


def test_a_page_that_a_takedown_deleted_is_redacted(store, chain):
    key = redact(store, chain[1], "page.html", None)
    assert check(chain[0], redacted=redactions(store)).redacted == [key]
    assert verify(chain[0]) == []


def test_decisions_of_a_release_without_lists_are_said_not_to_be_verifiable(chain):
    (fault,) = redo.check(chain[0], check(chain[0])).faults
    assert (fault.where, fault.field) == (chain[0].manifest_key, "code_version")


def test_a_manifest_that_is_no_json_is_named(store, chain):
    store.path(chain[1].manifest_key).write_text("not json")
    problems = verify(chain[0])
    assert any(chain[1].manifest_key in problem and "cannot be read" in problem for problem in problems)
