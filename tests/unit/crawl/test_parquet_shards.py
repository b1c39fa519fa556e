"""img2dataset's parquet output as tars: bytes untouched, rows in = written + refused, whatever the columns hold."""

import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compalign_dagster.crawl import parquet_shards
from compalign_dagster.crawl.index import Budgets, index_shard
from compalign_dagster.crawl.parquet_shards import REFUSED, land_file
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.store import LocalStore, open_store
from tests.conftest import ROOT
from tests.support import shard_builder as build

# As img2dataset 1.47 writes it: columns and types.
SCHEMA = pa.schema(
    [
        ("caption", pa.string()), ("url", pa.string()), ("key", pa.string()), ("status", pa.string()),
        ("error_message", pa.string()), ("width", pa.int32()), ("sha256", pa.string()), ("jpg", pa.binary()),
        ("txt", pa.string()),
    ]
)  # fmt: skip


def row(at: int, **fields: object) -> dict:
    whole = {
        "caption": f"thing {at}", "txt": f"thing {at}", "url": f"https://example.org/{at}", "key": f"{at:09d}",
        "status": "success", "error_message": None, "width": 32, "sha256": None, "jpg": build.picture(at),
    }  # fmt: skip
    return {**whole, **fields}


def write(folder: Path, rows: list[dict], schema: pa.Schema = SCHEMA, name: str = "00000.parquet") -> Path:
    path = folder / name
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=3)
    return path


@pytest.fixture
def landing(tmp_path):
    return open_store(str(tmp_path / "landing"))


def land(path: Path, landing, **options):
    return land_file(path, landing, **{"member_bytes": 1 << 20, **options})


def members(landing, name: str = "00000.tar") -> dict[str, bytes]:
    with tarfile.open(landing.fetch(name)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def refused(landing) -> list[dict]:
    table = pq.read_table(landing.fetch("00000.refused.parquet"))
    assert table.schema.equals(REFUSED)
    return table.to_pylist()


def test_images_and_captions_keep_their_bytes_and_become_pairs(tmp_path, landing):
    landed = land(write(tmp_path, [row(at) for at in range(5)]), landing)
    found = members(landing)
    assert (landed.rows, landed.written, landed.refused) == (5, 5, Counter())
    assert found["000000003.jpg"] == build.picture(3)
    assert found["000000003.txt"] == b"thing 3"
    assert json.loads(found["000000003.json"])["url"] == "https://example.org/3"
    assert index_shard(Shard("00000.tar", landing, "00000.tar"), Budgets()).pairs.num_rows == 5
    stats = json.loads(landing.read("00000_stats.json"))
    assert (stats["count"], stats["successes"], stats["status_dict"]) == (5, 5, {})


def test_every_row_that_is_not_written_is_refused_with_its_reason(tmp_path, landing):
    failed = {"jpg": None, "txt": None, "status": "failed_to_download"}
    rows = [
        row(0),
        row(1, **failed, error_message="HTTP Error 404: Not Found"),
        row(2, **failed, error_message="<urlopen error [Errno -2] Name or service not known>"),
        row(3, **failed, error_message="The read operation timed out"),
        row(4, **failed, error_message="Use of image disallowed by X-Robots-Tag directive"),
        row(5, status="failed_to_resize", jpg=None, error_message="image area too large"),
        row(6, jpg=None),
        row(7, jpg=b""),
        row(8, key=None),
        row(9, key="../../etc/passwd"),
        row(10, key="a.b"),
        row(11, key="000000000"),
        row(12, jpg=b"x" * ((1 << 20) + 1)),
        row(13, key="line\nbreak"),
        row(14, key="k" * 91),
    ]
    landed = land(write(tmp_path, rows), landing)
    assert landed.rows == 15 == landed.written + landed.refused.total()
    assert landed.refused == {
        "http_404": 1, "unreachable": 1, "timed_out": 1, "disallowed_by_robots_tag": 1, "failed": 1,
        "image_missing": 2, "key_unusable": 5, "duplicate_key": 1, "too_large": 1,
    }  # fmt: skip
    assert [(entry["row"], entry["reason"]) for entry in refused(landing)][:2] == [(1, "http_404"), (2, "unreachable")]
    assert {entry["url"] for entry in refused(landing)} == {f"https://example.org/{at}" for at in range(1, 15)}
    assert list(members(landing)) == ["000000000.jpg", "000000000.txt", "000000000.json"]


def test_hostile_values_stay_data(tmp_path, landing):
    schema = pa.schema(
        [("key", pa.string()), ("png", pa.large_binary()), ("caption", pa.string()), ("score", pa.float64()),
         ("boxes", pa.list_(pa.int32()))]
    )  # fmt: skip
    broken = pa.array([b"\xff\xfe broken"], pa.binary()).view(pa.string())
    table = pa.table(
        [["0"], [build.picture(1, form="PNG")], broken, [float("nan")], [[1, 2]]],
        schema=schema,
    )
    pq.write_table(table, tmp_path / "00000.parquet")
    landed = land(tmp_path / "00000.parquet", landing)
    found = members(landing)
    assert found["0.txt"] == b"\xff\xfe broken"
    assert json.loads(found["0.json"]) == {"key": "0", "caption": "\\xff\\xfe broken", "score": None}
    assert found["0.png"] == build.picture(1, form="PNG")
    assert landed.columns_left_out == ["boxes"]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([("key", pa.string())], "columns 'key'"),
        ([("jpg", pa.binary())], "columns 'jpg'"),
        ([("key", pa.int64()), ("jpg", pa.binary())], "key of type int64"),
        ([("key", pa.string()), ("jpg", pa.string())], "jpg of type string"),
        ([("key", pa.string()), ("jpg", pa.list_(pa.binary()))], "jpg of type list"),
        ([("key", pa.string()), ("key", pa.string()), ("jpg", pa.binary())], "columns 'key', 'key'"),
    ],
)
def test_files_of_other_columns_are_refused_in_one_line(schema, said, tmp_path, landing):
    path = tmp_path / "00000.parquet"
    pq.write_table(pa.schema(schema).empty_table(), path)
    with pytest.raises(InputError, match=said):
        land(path, landing)
    assert list(landing.list()) == []


@pytest.mark.parametrize("data", [b"", b"not parquet", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_what_is_no_parquet_is_refused_in_one_line(data, tmp_path, landing):
    (tmp_path / "00000.parquet").write_bytes(data)
    with pytest.raises(InputError, match="a Parquet file"):
        land(tmp_path / "00000.parquet", landing)


def test_a_damaged_row_group_costs_its_own_rows(tmp_path, landing):
    path = write(tmp_path, [row(at) for at in range(9)])
    place = pq.ParquetFile(path).metadata.row_group(1).column(7).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 60] = b"\xff" * 60
    path.write_bytes(data)
    landed = land(path, landing)
    assert (landed.rows, landed.written, landed.refused) == (9, 6, {"unreadable": 3})
    assert [(entry["row"], entry["rows"]) for entry in refused(landing)] == [(3, 3)]


def test_the_planted_bug_of_a_skipped_row_is_caught(tmp_path, landing, monkeypatch):
    rows = parquet_shards._rows
    monkeypatch.setattr(parquet_shards, "_rows", lambda *given: list(rows(*given))[1:])
    with pytest.raises(ConservationError, match="5 rows written or refused"):
        land(write(tmp_path, [row(at) for at in range(5)]), landing)


def test_landing_again_changes_nothing_and_other_bytes_are_never_written_over(tmp_path, landing):
    path = write(tmp_path, [row(at) for at in range(4)])
    assert not land(path, landing).already_there
    first = landing.read("00000.tar")
    assert land(path, landing).already_there
    with pytest.raises(InputError, match="a free name, or the same bytes"):
        land(write(tmp_path, [row(at) for at in range(3)]), landing)
    assert landing.read("00000.tar") == first


def test_a_file_without_a_usable_row_gives_no_tar_but_says_why(tmp_path, landing):
    landed = land(write(tmp_path, [row(0, jpg=None)]), landing)
    assert landed.refused == {"image_missing": 1}
    assert [item.key for item in landing.list()] == ["00000.refused.parquet", "00000_stats.json"]


@pytest.mark.slow
def test_one_huge_row_group_of_many_pages_is_read_in_bounded_memory(tmp_path):
    image = pa.array([bytes([at]) * (1 << 20) for at in range(250)] * 2, pa.binary())
    keys = pa.array([f"{at:09d}" for at in range(500)])
    table = pa.table({"key": keys, "jpg": image})
    pq.write_table(table, tmp_path / "00000.parquet", row_group_size=500, use_dictionary=False, write_batch_size=16)
    del table, image
    probe = (
        "import sys; from pathlib import Path; from tests.support.memory import mib;"
        "from compalign_dagster.crawl.parquet_shards import land_file;"
        "from compalign_dagster.store import LocalStore;"
        "before = mib();"
        "landed = land_file(Path(sys.argv[1]), LocalStore(Path(sys.argv[2])), member_bytes=1 << 21);"
        "print(landed.written, mib() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(tmp_path / "00000.parquet"), str(tmp_path / "landing")],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    written, more_mib = map(int, done.stdout.split())
    assert written == 500
    assert more_mib < 250
    assert (LocalStore(tmp_path / "landing").stat("00000.tar").size) > 500 << 20
