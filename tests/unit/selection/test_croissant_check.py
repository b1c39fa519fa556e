"""An exported folder is what its description says; what a validator of Croissant lets pass is named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlcroissant
import pytest

from compalign_dagster.selection.croissant_check import check
from compalign_dagster.selection.exporting import FORMATS, export
from tests.support.small_version import small_store

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    store = small_store(tmp_path_factory.mktemp("small"), pairs=20)
    return store, store.filter(keep_fraction="0.3")


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory) -> Path:
    store, version = small
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(version, folder, FORMATS, landing=store.storage.landing, dropped=True, per_shard=5)
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def _edit(folder: Path, change: Any) -> list[str]:
    """The faults of a description after a change, put back afterwards."""
    path = folder / "croissant.json"
    clean = path.read_bytes()
    told = json.loads(clean)
    change(told)
    path.write_text(json.dumps(told))
    found = check(folder)
    path.write_bytes(clean)
    return found


def _objects(value: Any, where: tuple = ()) -> Iterator[tuple]:
    """The paths of all objects of a description, but for its context."""
    if isinstance(value, dict):
        yield where
        for name, item in value.items():
            if name != "@context":
                yield from _objects(item, (*where, name))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _objects(item, (*where, at))


def _at(value: Any, where: tuple) -> Any:
    for step in where:
        value = value[step]
    return value


def test_every_export_is_what_its_description_says_however_it_came_to_be(small, tmp_path):
    store, version = small
    for at, steps in enumerate(
        [[("croissant",)], [("uids",), ("croissant",)], [("croissant",), ("card",)], [("croissant", "tars", "uids")]]
    ):
        for formats in steps:
            export(version, tmp_path / str(at), formats, landing=store.storage.landing)
        assert check(tmp_path / str(at)) == []


def test_no_fault_is_found_in_a_clean_export(folder):
    assert check(folder) == []
    told = json.loads((folder / "croissant.json").read_text())
    assert sum(entry["name"].endswith(".tar") for entry in told["distribution"]) > 1
    dropped = [step for step in told["rai:dataPreprocessingProtocol"] if step.startswith("dropped")]
    pairs, kept = (int(told["rai:dataPreprocessingProtocol"][at].split()[at and 1]) for at in (0, -1))
    lost = int(told["rai:dataPreprocessingProtocol"][0].split()[3])
    assert pairs == kept + lost + sum(int(step.split()[1].rstrip(":")) for step in dropped)


def test_a_validator_lets_a_wrong_digest_and_a_misspelt_key_pass(folder):
    path = folder / "croissant.json"
    told = json.loads(path.read_text())
    told["distribution"][0]["sha256"] = "0" * 64
    told["rai:dataBiasses"] = told.pop("rai:dataBiases")
    path.write_text(json.dumps(told))
    issues = mlcroissant.Dataset(path).metadata.ctx.issues
    assert not issues.errors, "the control: this is why there is a check of our own"
    assert len(check(folder)) >= 3, "the digest, the key that is unknown, the one that is missing"


def test_every_misspelt_missing_and_invented_key_is_named(folder):
    told = json.loads((folder / "croissant.json").read_text())
    tried = 0
    seen: set[tuple] = set()
    for where in _objects(told):
        kind = tuple("*" if isinstance(step, int) else step for step in where)
        if kind in seen:
            continue
        seen.add(kind)
        for key in _at(told, where):
            if key == "@type":
                continue

            def misspell(other: Any, where: tuple = where, key: str = key) -> None:
                one = _at(other, where)
                one[f"{key}s"] = one.pop(key)

            found = _edit(folder, misspell)
            assert any(f"/{key}s: expected a term" in line and f"such as {key}" in line for line in found), (where, key)
            assert any(f"/{key}: expected, found none" in line or key == "@context" for line in found), (where, key)
            tried += 1
    assert tried > 40


def test_every_changed_file_is_named(folder):
    told = json.loads((folder / "croissant.json").read_text())
    for entry in told["distribution"]:
        path = folder / entry["name"]
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert [line for line in check(folder) if entry["name"] in line and "SHA-256" in line]
        path.write_bytes(whole[:-1])
        assert [line for line in check(folder) if entry["name"] in line and f"{len(whole)} B" in line]
        path.unlink()
        assert check(folder) == [f"{entry['name']}: expected a file of the folder, found none"]
        path.write_bytes(whole)
    (folder / "more.parquet").write_bytes(b"?")
    assert check(folder) == ["more.parquet: expected no file that the description does not name"]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "shards/../../outside", "link"])
def test_nothing_outside_the_folder_is_opened(folder, name):
    (folder.parent / "outside").write_bytes(b"secret")
    (folder / "link").symlink_to(folder.parent / "outside")

    def point(told: Any) -> None:
        told["distribution"][0] |= {"contentUrl": name, "@id": name, "name": name}

    assert f"{name}: expected a file of the folder, found none" in _edit(folder, point)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 5_000, '{"@type": ["sc:Dataset"]}', '{"@type": "sc:Dataset"}'])
def test_a_description_that_is_none_is_one_line(folder, text):
    (folder / "croissant.json").write_text(text)
    found = check(folder)
    assert found
    assert all(len(line) < 400 for line in found)
