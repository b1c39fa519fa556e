"""`compalign export`: files of a version, as people without a store get them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from compalign_dagster.cli import main as front
from compalign_dagster.selection.exporting import FORMATS
from compalign_dagster.selection.tables import KEPT
from tests.support.small_version import small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    small = small_store(tmp_path_factory.mktemp("export"), batches=1, pairs=10)
    small.filter(keep_fraction="0.5")
    return small


@pytest.fixture
def compalign(small, monkeypatch, capsys):
    monkeypatch.setenv("COMPALIGN_HOME", str(small.home))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = front.run(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_current_version_is_written_as_a_table_unless_asked_otherwise(small, compalign, tmp_path):
    code, said, _ = compalign("export", "--out", str(tmp_path / "out"))
    assert code == 0
    table = pl.read_parquet(tmp_path / "out" / "kept.parquet")
    assert table.columns == KEPT.names
    assert f"{table.height:,} pairs" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"kept.parquet", "export.json"}


def test_every_format_is_written_and_named_with_its_size(compalign, tmp_path):
    asked = [word for name in FORMATS for word in ("--format", name)]
    code, said, _ = compalign("export", "--out", str(tmp_path), "--dropped", "--per-shard", "3", *asked)
    assert code == 0
    record = json.loads((tmp_path / "export.json").read_text())["files"]
    wanted = {"kept.parquet", "dropped.parquet", "uids.npy", "croissant.json", "README.md", "reasons.png"}
    assert wanted < set(record)
    assert "shards/00001.tar" in record
    for name, entry in record.items():
        assert f"{tmp_path / name}  {entry['bytes']:,} bytes" in said
    assert np.load(tmp_path / "uids.npy").dtype == np.dtype("u8,u8")
    for name in ("reasons.png", "rewards.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in (tmp_path / "README.md").read_text()
    assert compalign("verify", "--export", str(tmp_path))[:2] == (0, "no fault found\n")
    (tmp_path / "README.md").write_text("another card")
    code, said, _ = compalign("verify", "--export", str(tmp_path))
    assert (code, "README.md: expected SHA-256" in said) == (1, True)


def test_a_version_is_named_by_the_beginning_of_its_work_key(small, compalign, tmp_path):
    trial = small.filter(keep_fraction="0.1", move=False)
    code, said, _ = compalign("export", "--dataset", trial.artifact.work_key[:8], "--out", str(tmp_path))
    assert code == 0
    assert trial.artifact.work_key[:12] in said
    assert pl.read_parquet(tmp_path / "kept.parquet").height == trial.facts["kept"]


@pytest.mark.parametrize("wrong", ["nothing-like-it", "0000"])
def test_an_unknown_version_is_one_line_and_exit_code_2(compalign, tmp_path, wrong):
    code, said, complaint = compalign("export", "--dataset", wrong, "--out", str(tmp_path / "out"))
    assert (code, said) == (2, "")
    (line,) = [line for line in complaint.splitlines() if line.startswith("compalign: ")]
    assert f"dataset version '{wrong}'" in line
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_line_and_exit_code_2(compalign, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, complaint = compalign("export", "--out", str(tmp_path / "file" / "out"))
    assert code == 2
    assert "Choose another --out." in complaint


def test_a_format_that_there_is_not_is_wrong_usage(compalign, tmp_path):
    code, _, complaint = compalign("export", "--out", str(tmp_path), "--format", "csv")
    assert code == 2
    assert "parquet" in complaint


def test_the_pages_code_runs_on_a_fresh_store(small, compalign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compalign("export", "--out", "dataset", "--format", "uids", "--format", "croissant")[0] == 0
    page = Path(__file__).parents[2].joinpath("docs/dataset.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    assert len(blocks) == 4
    names = {"__name__": "__main__"}
    for block in blocks:
        block = block.replace("var/sample/store", small.store.url).replace("var/sample/landing", small.landing.url)
        exec(compile(block.replace("workers=2", "workers=0"), "docs/dataset.md", "exec"), names)
    table = pl.read_parquet("dataset/kept.parquet")
    assert names["pairs"].pairs == table.height
    assert names["state"]["epoch"] == 1
    assert names["pair_ids"] == sorted(set(table["pair_id"]))
    assert names["record"]["kept/caption"].decode() == table["caption"][-1]
