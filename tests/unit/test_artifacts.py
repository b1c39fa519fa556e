"""Artifacts exist when their manifest does, the first manifest wins, and their bytes can be verified."""

import json

import pytest

from compalign_dagster import artifacts
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import digest_bytes


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def publish(store: LocalStore, key: str = "k1", *, body: bytes = b"rows", facts: dict | None = None,
            **options: object) -> Artifact:  # fmt: skip
    return artifacts.publish(
        store, "table", key, {"rows.bin": body, "sub/more.bin": b"more"}, code_version=1,
        inputs=[Input("crawl", "crawl/x/manifest.json", "abc", "batch-00001")], config={"seed": 1},
        facts=facts or {"rows": 4}, **options,
    )  # fmt: skip


def test_what_is_published_is_found_again_with_everything_it_was_told(store):
    made = publish(store, partition="batch-00001", views={"page.html": b"<p>"})
    found = artifacts.find(store, "table", "k1", "batch-00001")
    assert found == made
    assert (found.kind, found.partition, found.work_key) == ("table", "batch-00001", "k1")
    assert found.facts == {"rows": 4}
    assert found.inputs == [Input("crawl", "crawl/x/manifest.json", "abc", "batch-00001")]
    assert found.names() == ["rows.bin", "sub/more.bin"]
    assert found.has_view("page.html")
    assert not found.has_view("rows.bin")
    assert found.fetch("rows.bin").read_bytes() == b"rows"
    digest = digest_bytes(store.read(found.manifest_key))
    assert found.as_input() == Input("table", found.manifest_key, made.data_version, "batch-00001", digest)
    assert found.manifest_key == "table/batch-00001/k1/manifest.json"
    assert artifacts.load(store, found.manifest_key) == found


@pytest.mark.parametrize("name", ["../../pwned", "/pwned", "sub/../../pwned"])
def test_a_name_that_would_leave_the_folder_is_not_checked_out(store, tmp_path, name):
    made = publish(store)
    files = made.manifest["files"]
    forged = Artifact(store, made.path, {**made.manifest, "files": {name: files["rows.bin"]}})
    with pytest.raises(CompalignError, match="climbs"):
        forged.checkout(tmp_path / "deep" / "folder")
    assert not list(tmp_path.rglob("pwned"))


def test_work_that_was_not_done_is_not_found(store):
    publish(store)
    assert artifacts.find(store, "table", "k2") is None
    assert artifacts.find(store, "other", "k1") is None
    assert artifacts.find(store, "table", "k1", "batch-00001") is None


def test_the_data_version_depends_on_the_data_alone(store):
    one = publish(store, "k1", views={"page.html": b"1"}, facts={"seconds": 1})
    two = publish(store, "k2", views={"page.html": b"2"}, facts={"seconds": 2})
    other = publish(store, "k3", body=b"other rows")
    assert one.data_version == two.data_version != other.data_version


def test_the_first_manifest_wins_and_files_of_two_writers_never_mix(store):
    first = publish(store, body=b"first")
    second = publish(store, body=b"second")
    assert second == first
    assert second.fetch("rows.bin").read_bytes() == b"first"
    second.verify()


def test_a_crash_before_the_manifest_leaves_no_artifact_and_does_not_hinder_the_next_try(store, monkeypatch):
    real = store.put_new

    def dies_at_the_manifest(key: str, source: bytes) -> bool:
        if key.endswith("manifest.json"):
            raise KeyboardInterrupt
        return real(key, source)

    monkeypatch.setattr(store, "put_new", dies_at_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        publish(store)
    assert artifacts.find(store, "table", "k1") is None
    monkeypatch.undo()
    publish(store).verify()


@pytest.mark.parametrize("name", ["rows.bin", "page.html"])
def test_an_altered_file_fails_verification_by_name(store, name):
    artifact = publish(store, views={"page.html": b"<p>"})
    artifact.verify()
    store.path(artifact.file_key(name)).write_bytes(b"tampered")
    with pytest.raises(CompalignError, match=name):
        artifact.verify()


def test_every_manifest_entry_is_the_digest_of_its_file(store):
    artifact = publish(store)
    assert artifact.manifest["files"]["rows.bin"]["sha256"] == digest_bytes(b"rows")
    assert artifact.manifest["files"]["rows.bin"]["bytes"] == 4


def test_a_checkout_leaves_no_copy_elsewhere(tmp_path):
    class Bucket(LocalStore):
        def fetch(self, key):
            raise AssertionError("its copies stay until the process ends")

    folder = publish(Bucket(tmp_path / "store")).checkout(tmp_path / "out")
    assert (folder / "sub/more.bin").read_bytes() == b"more"


def test_a_checkout_holds_the_data_files_under_their_own_names(store, tmp_path):
    folder = publish(store, views={"page.html": b"<p>"}).checkout(tmp_path / "out")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "rows.bin", "sub/more.bin",
    }  # fmt: skip
    assert (folder / "sub" / "more.bin").read_bytes() == b"more"


def test_a_manifest_of_another_schema_is_refused(store):
    artifact = publish(store)
    path = store.path(artifact.manifest_key)
    path.write_text(json.dumps(artifact.manifest | {"schema_version": 99}))
    with pytest.raises(CompalignError, match="schema version 1"):
        artifacts.find(store, "table", "k1")
