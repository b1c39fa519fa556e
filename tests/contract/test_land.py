"""`compalign land` as a person meets it: what is printed, what is written, exit codes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compalign_dagster.cli import main as front
from tests.support.shard_builder import picture


@pytest.fixture
def run(capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = front.run([str(argument) for argument in arguments])
        except SystemExit as leaving:
            code = leaving.code
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def download(tmp_path):
    table = pa.table({"key": ["0", "1"], "jpg": [picture(1), None], "caption": ["x", "y"], "status": ["success", "f"]})
    (tmp_path / "got").mkdir()
    pq.write_table(table, tmp_path / "got" / "00000.parquet")
    return tmp_path / "got"


def test_it_writes_shards_that_index_reads_and_says_what_was_refused(download, tmp_path, run):
    code, out, _ = run("land", "--parquet", download, "--out", tmp_path / "landing" / "cc3m")
    assert code == 0
    assert "1 of 2 rows in 1 shards" in out
    assert "1 refused: failed" in out
    assert sorted(path.name for path in (tmp_path / "landing" / "cc3m").iterdir() if path.name[0] != ".") == [
        "00000.refused.parquet", "00000.tar", "00000_stats.json",
    ]  # fmt: skip
    assert run("index", "--shards", tmp_path / "landing", "--out", tmp_path / "index")[0] == 0
    assert pq.read_table(tmp_path / "index" / "pairs.parquet")["shard"].to_pylist() == ["cc3m/00000.tar"]
    assert (
        "all of it was landed before" in run("land", "--parquet", download, "--out", tmp_path / "landing" / "cc3m")[1]
    )


def test_strict_leaves_with_1_when_a_row_was_refused(download, tmp_path, run):
    assert run("land", "--parquet", download, "--out", tmp_path / "landing", "--strict")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x"], "one of --parquet and --urls"),
        (["--out", "x", "--parquet", "y", "--urls", "z"], "one of --parquet and --urls"),
        (["--out", "x", "--parquet", "nothing-here.parquet"], "nothing-here.parquet"),
        (["--out", "x", "--urls", "y.txt", "--img2dataset", "no/python"], "make img2dataset"),
        (["--parquet", "y"], "--out"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, said, run):
    code, _, complaint = run("land", *arguments)
    assert code == 2
    assert complaint.count("\n") == 1
    assert said in complaint


def test_two_files_of_one_name_are_refused(download, tmp_path, run):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "00000.parquet").write_bytes((download / "00000.parquet").read_bytes())
    code, _, complaint = run("land", "--parquet", download, "--parquet", tmp_path / "more", "--out", tmp_path / "x")
    assert code == 2
    assert "one file of that name" in complaint
