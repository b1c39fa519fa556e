import pytest

from compalign_dagster import artifacts, latest
from compalign_dagster.errors import InputError
from compalign_dagster.selection import current, versions
from compalign_dagster.store import LocalStore
from tests.support.small_version import small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    small = small_store(tmp_path_factory.mktemp("versions"), batches=1, pairs=8)
    small.filter(keep_fraction="0.5")
    small.filter(keep_fraction="0.25", move=False)
    return small


def test_a_version_is_found_by_every_name_that_people_use(small):
    first, trial = versions.history(small.store)
    for name in ("current", first.artifact.manifest_key, first.artifact.path, first.artifact.work_key, first.name[:4]):
        assert versions.resolve(small.store, name).artifact.manifest_key == first.artifact.manifest_key
    found = versions.resolve(small.store, trial.name)
    assert str(found.policy.keep_fraction) == "0.25"


def test_history_tells_what_was_made_and_what_was_current_when(small):
    first, trial = versions.history(small.store)
    assert (first.made.version, trial.made.version) == (1, 2)
    assert [fact.version for fact in first.current] == [1]
    assert trial.current == ()


@pytest.mark.parametrize(
    "name", ["", "abc", "no-such-version", "filtered_dataset/0000/manifest.json", "../x", "CURRENT"]
)
def test_an_unknown_name_is_one_line_that_lists_what_there_is(small, name):
    with pytest.raises(InputError) as refused:
        versions.find(small.store, name)
    text = str(refused.value)
    assert "\n" not in text
    assert all(item.name in text for item in versions.history(small.store))


def test_a_name_of_two_versions_is_refused_and_no_other_manifest_is_read(small, tmp_path, monkeypatch):
    store, read = LocalStore(tmp_path), []
    keys = [f"{'ab' * 16}{at:032x}" for at in range(2)] + ["cd" * 32]
    for key in keys:
        latest.point(
            artifacts.publish(store, versions.KIND, key, {"x": b""}, code_version=1, inputs=[], config={}, facts={})
        )
    whole = artifacts.load
    monkeypatch.setattr(artifacts, "load", lambda store, key: read.append(key) or whole(store, key))
    assert versions.find(store, "cdcd").work_key == keys[2]
    assert len(read) == 1
    with pytest.raises(InputError, match="found 2 of them. Give more digits"):
        versions.find(store, "ababab")


def test_a_store_without_versions_says_so(tmp_path):
    empty = small_store(tmp_path, batches=1, shards=1, pairs=2)
    assert versions.history(empty.store) == []
    for name in ("current", "abcdef"):
        with pytest.raises(InputError, match="no version, for none was published"):
            versions.find(empty.store, name)


def test_a_version_whose_manifest_is_gone_is_no_version(tmp_path):
    small = small_store(tmp_path, batches=1, shards=1, pairs=6)
    gone = small.filter(keep_fraction="0.5").artifact
    left = small.filter(keep_fraction="0.25").artifact
    (small.home / "store" / gone.manifest_key).unlink()
    assert [item.artifact.manifest_key for item in versions.history(small.store)] == [left.manifest_key]
    with pytest.raises(InputError, match="found 0 of them"):
        versions.find(small.store, gone.manifest_key)
    assert current.read(small.store).manifest_key == left.manifest_key
    assert artifacts.load(small.store, gone.manifest_key) is None
