"""An export holds what the version keeps, says so with digests, and loads with tools that are not ours."""

import json
import shutil
import tarfile
from collections import Counter

import mlcroissant
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.selection import exporting
from compalign_dagster.selection.exporting import FORMATS, export
from compalign_dagster.selection.pairs import PairChangedError
from compalign_dagster.selection.tables import DROPPED, KEPT
from compalign_dagster.selection.uids import as_pair_ids
from compalign_dagster.versions import digest_file
from tests.support.small_version import small_store

OCCURRENCE = ["pair_id", "shard", "key", "caption_index"]
SCARY = "x<img src=1>|`$(reboot)`"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("exporting"), pairs=12)


@pytest.fixture(scope="module")
def version(small):
    return small.filter(keep_fraction="0.4", most_per_domain=9)


@pytest.fixture(scope="module")
def made(small, version, tmp_path_factory):
    """Everything exported: the folder and its record."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    plots = {"rewards.png": (b"a picture", "what it shows")}
    record = export(
        version, folder, FORMATS, landing=small.landing, dropped=True, per_shard=5, plots=lambda version: plots
    )
    return folder, record


def test_the_record_names_every_file_with_its_digest(made, version):
    folder, record = made
    assert json.loads((folder / "export.json").read_text()) == record
    assert record["version"] == version.artifact.manifest_key
    assert record["data_version"] == version.artifact.data_version
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {*record["files"], "export.json"}
    for name, entry in record["files"].items():
        assert entry["sha256"] == digest_file(folder / name)
        assert entry["bytes"] == (folder / name).stat().st_size


def test_kept_and_dropped_tables_together_are_every_pair_once(made, version, small):
    folder, record = made
    kept, dropped = pl.read_parquet(folder / "kept.parquet"), pl.read_parquet(folder / "dropped.parquet")
    assert pq.read_schema(folder / "kept.parquet").equals(KEPT, check_metadata=True)
    assert pq.read_schema(folder / "dropped.parquet").equals(DROPPED, check_metadata=True)
    assert kept.height == record["files"]["kept.parquet"]["records"] == version.facts["kept"]
    assert dict(dropped.group_by("reason").len().rows()) == version.facts["dropped_by_reason"]
    decided = pl.concat([version.decided(batch, OCCURRENCE) for batch in version.batches()])
    both = pl.concat([kept.select(OCCURRENCE), dropped.select(OCCURRENCE)])
    assert Counter(both.rows()) == Counter(decided.select(OCCURRENCE).rows())
    assert set(both.rows()).issuperset(kept.select(OCCURRENCE).rows())


def test_identifiers_are_those_of_the_kept_pairs(made):
    folder, record = made
    ids = as_pair_ids(np.load(folder / "uids.npy"))
    assert ids == sorted(set(pl.read_parquet(folder / "kept.parquet")["pair_id"]))
    assert record["files"]["uids.npy"]["records"] == len(ids)


def test_tars_hold_every_kept_pair_once_and_as_many_images_as_asked(made):
    folder, _ = made
    pairs, sizes = Counter(), []
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            facts = [json.loads(tar.extractfile(item).read()) for item in tar if item.name.endswith(".json")]
        sizes.append(len(facts))
        pairs.update(
            (pair_id, entry["source"]["shard"], entry["source"]["key"], caption)
            for entry in facts
            for pair_id, caption in zip(entry["pair_ids"], entry["captions"], strict=True)
        )
    kept = pl.read_parquet(folder / "kept.parquet").select("pair_id", "shard", "key", "caption")
    assert pairs == Counter(kept.rows())
    assert set(sizes[:-1]) == {5}
    assert 1 <= sizes[-1] <= 5


def test_the_description_is_valid_croissant_without_a_warning_and_reads_back_every_record(made, version):
    folder, record = made
    dataset = mlcroissant.Dataset(folder / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert (set(issues.errors), set(issues.warnings)) == (set(), set())
    read = [tuple(_plain(row[f"kept/{name}"]) for name in KEPT.names) for row in dataset.records("kept")]
    assert len(read) == version.facts["kept"]
    assert Counter(read) == Counter(pl.read_parquet(folder / "kept.parquet").rows())
    reasons = Counter(_plain(row["dropped/reason"]) for row in dataset.records("dropped"))
    assert reasons == version.facts["dropped_by_reason"]
    described = {item.id: item.sha256 for item in dataset.metadata.distribution}
    assert described == {name: entry["sha256"] for name, entry in record["files"].items() if name != "croissant.json"}


@pytest.mark.parametrize("damage", ["no column", "no file", "no type"])
def test_a_description_that_does_not_fit_is_found_by_the_validator(made, damage):
    folder, _ = made
    told = json.loads((folder / "croissant.json").read_text())
    field = told["recordSet"][0]["field"][0]
    if damage == "no column":
        field["source"]["extract"]["column"] = "nowhere"
    elif damage == "no file":
        field["source"]["fileObject"]["@id"] = "nowhere.parquet"
    else:
        del field["dataType"]
    other = folder / f"broken-{damage.replace(' ', '-')}.json"
    try:
        other.write_text(json.dumps(told))
        with pytest.raises(Exception, match=r"nowhere|dataType|kept\.parquet"):
            list(mlcroissant.Dataset(other).records("kept"))
    finally:
        other.unlink()


def test_the_description_states_that_no_licence_is_known_and_what_to_cite(made, version):
    folder, _ = made
    told = json.loads((folder / "croissant.json").read_text())
    assert told["license"].startswith("unknown:")
    assert version.artifact.data_version in told["citeAs"]
    assert all(field["description"] for records in told["recordSet"] for field in records["field"])
    assert all(item["description"] and item["sha256"] for item in told["distribution"])


def test_the_card_adds_up_and_holds_what_a_reader_needs(made, version):
    folder, record = made
    card = (folder / "README.md").read_text()
    lines = [line.split(" | ") for line in card.splitlines() if line.startswith("| - ")]
    dropped = sum(int(cells[1].replace(",", "")) for cells in lines)
    assert version.facts["pairs"] - dropped == version.facts["kept"]
    assert {cells[0].removeprefix("| - ") for cells in lines} == {*version.facts["dropped_by_reason"], "quarantined"}
    for needed in (
        "## Where it comes from", "## Policy", "## Known limits", "## Load it", "## Licence", "rewards.png",
        version.facts["model_version"], "`most_per_domain`", version.artifact.data_version,
        record["files"]["kept.parquet"]["sha256"],
    ):  # fmt: skip
        assert needed in card
    assert "keep_count" not in card, "a rule that the policy does not use is not listed"


def test_the_cards_code_runs_as_it_stands(made, small, version):
    folder, _ = made
    blocks = [block.partition("```")[0] for block in (folder / "README.md").read_text().split("```python\n")[1:]]
    placed = {
        '"STORE"': repr(small.store.url),
        '"LANDING"': repr(small.landing.url),
        '"kept.parquet"': repr(str(folder / "kept.parquet")),
        '"uids.npy"': repr(str(folder / "uids.npy")),
    }
    assert all(any(name in block for block in blocks) for name in placed)
    made_by = {}
    for block in blocks:
        for name, place in placed.items():
            block = block.replace(name, place)
        exec(compile(block, "card", "exec"), made_by)
    assert len(made_by["pairs"]) == version.facts["kept"]
    assert len(made_by["uids"]) == made_by["pairs"]["pair_id"].n_unique()
    assert made_by["batch"]["image"][0].startswith(b"\xff\xd8")


def test_the_same_version_gives_the_same_bytes_again(made, small, version, tmp_path):
    _, record = made
    again = export(version, tmp_path / "again", ["parquet", "uids", "tars"], landing=small.landing, per_shard=5)
    for name, entry in again["files"].items():
        assert entry == record["files"][name]


def test_memory_follows_a_shard_not_the_dataset(small, version, tmp_path, monkeypatch):
    sizes = []
    joined = exporting._joined
    monkeypatch.setattr(exporting, "_ROW_GROUP_ROWS", 1)
    monkeypatch.setattr(
        exporting, "_joined", lambda frames, rows: (sizes.append(part.height) or part for part in joined(frames, rows))
    )
    export(version, tmp_path / "out", ["parquet"], landing=small.landing)
    assert len(sizes) == version.shards.height
    assert sum(sizes) == version.facts["kept"]
    assert pq.ParquetFile(tmp_path / "out/kept.parquet").num_row_groups == len(sizes)


def test_a_folder_with_another_version_or_with_tars_is_refused(made, small, version, tmp_path):
    folder, _ = made
    other = small.filter(keep_fraction="0.1", move=False)
    with pytest.raises(InputError, match="the export of version"):
        export(other, folder, ["parquet"], landing=small.landing)
    with pytest.raises(InputError, match="found tars"):
        export(version, folder, ["tars"], landing=small.landing)


def test_an_export_that_fails_leaves_no_half_file(small, version, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_ROW_GROUP_ROWS", 1)
    frames = exporting.kept_frames
    monkeypatch.setattr(exporting, "kept_frames", lambda version: _then_fail(frames(version)))
    with pytest.raises(PairChangedError):
        export(version, tmp_path / "out", ["parquet"], landing=small.landing)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["export.json"]
    assert json.loads((tmp_path / "out/export.json").read_bytes())["files"] == {}


def test_a_version_that_keeps_nothing_exports_empty_tables(small, tmp_path):
    nothing = small.filter(keep_fraction="0", move=False)
    record = export(nothing, tmp_path / "out", FORMATS, landing=small.landing)
    assert pl.read_parquet(tmp_path / "out/kept.parquet").height == 0
    assert np.load(tmp_path / "out/uids.npy").shape == (0,)
    assert not any(name.endswith(".tar") for name in record["files"])
    assert list(mlcroissant.Dataset(tmp_path / "out/croissant.json").records("kept")) == []


def test_a_corpus_whose_name_is_markup_is_inert_in_the_card(tmp_path):
    small = small_store(tmp_path, batches=1, shards=1, pairs=4)
    hostile = small.home / "landing" / SCARY / "00002.tar"
    hostile.parent.mkdir()
    shutil.copyfile(next((small.home / "landing").rglob("00000.tar")), hostile)
    small.settle()
    version = small.filter(keep_fraction="1")
    export(version, tmp_path / "out", ["card"], landing=small.landing)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<img" not in card
    assert "&lt;img src=1>\\|\\`$(reboot)\\`" in card


def _then_fail(frames):
    yield next(frames)
    raise PairChangedError("pair x", expected="it", found="nothing", remedy="Look.")


def _plain(value):
    return value.decode() if isinstance(value, bytes) else value


def test_a_second_export_of_the_same_version_keeps_the_record_of_the_first(small, version, tmp_path):
    export(version, tmp_path, ["uids"], landing=small.landing)
    record = export(version, tmp_path, ["parquet"], landing=small.landing)
    assert set(record["files"]) == {"uids.npy", "kept.parquet"}
    (tmp_path / "uids.npy").unlink()
    assert set(export(version, tmp_path, ["parquet"], landing=small.landing)["files"]) == {"kept.parquet"}


def test_an_export_that_breaks_off_leaves_no_room_for_another_version(small, version, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(exporting, "kept_frames", full)
    with pytest.raises(OSError, match="no space"):
        export(version, tmp_path, ["parquet"], landing=small.landing)
    monkeypatch.undo()
    other = small.filter(keep_fraction="0.2")
    with pytest.raises(InputError, match="another --out"):
        export(other, tmp_path, ["uids"], landing=small.landing)
