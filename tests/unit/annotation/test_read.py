import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compalign_dagster.annotation import read
from compalign_dagster.annotation.read import Line, Rejection, jsonl_lines, parse_line, read_annotations
from compalign_dagster.annotation.schema import JudgedImage
from compalign_dagster.annotation.tables import REJECTED
from compalign_dagster.errors import InputError
from compalign_dagster.parquet import from_rows
from compalign_dagster.store import LocalStore
from tests.unit.annotation.lines import jsonl, judgement, line


def results(data: bytes) -> list[Line | Rejection]:
    return list(jsonl_lines(io.BytesIO(data), "f.jsonl"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # a busy machine is not a mistake
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_give_one_result_a_line_and_never_raise(pieces):
    data = b"\n".join(pieces)
    found = results(data)
    filled = [number for number, piece in enumerate(data.split(b"\n"), start=1) if piece.strip()]
    if not data.startswith(b"\xef\xbb\xbf"):
        assert [result.line for result in found] == filled
    rows = [vars(result) for result in found if isinstance(result, Rejection)]
    assert from_rows(rows, REJECTED).num_rows + sum(isinstance(result, Line) for result in found) == len(found)


@settings(deadline=None)  # a busy machine is not a mistake
@given(json_values)
def test_any_json_value_is_a_line_or_a_rejection(value):
    result = parse_line(json.dumps(value).encode(), "f.jsonl", 1)
    assert isinstance(result, Rejection)
    assert result.reason


@settings(deadline=None)  # a busy machine is not a mistake
@given(st.data())
def test_a_good_line_with_anything_put_anywhere_never_raises(data):
    value = line()
    node = value
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(json_values)
        break
    result = parse_line(json.dumps(value).encode(), "f.jsonl", 1)
    if isinstance(result, Line):
        assert JudgedImage.model_validate_json(result.judged.model_dump_json()) == result.judged


def test_a_bad_line_costs_itself_and_is_found_again_by_its_number():
    found = results(jsonl(line("1"), b"{not json", b"", b"  ", line("2"), b'{"image": "\xff"}', line("3")))
    assert [(type(result), result.line) for result in found] == [
        (Line, 1),
        (Rejection, 2),
        (Line, 5),
        (Rejection, 6),
        (Line, 7),
    ]
    assert {result.reason for result in found if isinstance(result, Rejection)} == {"not_json"}


def test_a_last_line_without_an_end_and_windows_endings_and_a_byte_order_mark_are_fine():
    data = b"\xef\xbb\xbf" + jsonl(line("1")).replace(b"\n", b"\r\n") + json.dumps(line("2")).encode()
    assert [type(result) for result in results(data)] == [Line, Line]


def test_a_line_too_long_is_passed_over_and_the_next_is_read(monkeypatch):
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 2000)
    for size in (2000, 2001, 3999, 4002, 9000):
        found = results(jsonl(b"x" * size, line("2")))
        assert [result.line for result in found] == [1, 2]
        assert isinstance(found[1], Line)
        assert found[0].reason == ("line_too_long" if size >= 2000 else "not_json")


def test_deep_nesting_is_a_rejection():
    result = parse_line(b"[" * 100_000, "f.jsonl", 1)
    assert isinstance(result, Rejection)


def export(folder: Path, name: str, *items: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jsonl(*items))
    return path


def test_a_folder_stands_for_all_exports_below_but_hidden_ones(tmp_path):
    export(tmp_path, "b.jsonl", line("1"))
    export(tmp_path, "a/c.jsonl", b"oops")
    export(tmp_path, "a/.c.jsonl.part.jsonl", b"oops")
    export(tmp_path, "readme.txt", b"oops")
    lines, rejected = read_annotations([str(tmp_path)])
    assert [item.file for item in lines] == ["b.jsonl"]
    assert [item.file for item in rejected] == ["a/c.jsonl"]


def test_globs_files_and_folders_that_overlap_read_each_file_once(tmp_path):
    first = export(tmp_path, "x/a.jsonl", line("1"))
    export(tmp_path, "x/y/b.jsonl", line("2"))
    lines, _ = read_annotations([str(first), str(tmp_path / "**/*.jsonl"), str(tmp_path)])
    assert [(item.file, item.judged.image.key) for item in lines] == [("a.jsonl", "1"), ("y/b.jsonl", "2")]


def test_file_names_do_not_depend_on_where_the_folder_lies(tmp_path):
    for place in ("here", "there/and/deeper"):
        export(tmp_path / place, "e/a.jsonl", b"oops")
        export(tmp_path / place, "f.jsonl", b"oops")
    one, other = (read_annotations([str(tmp_path / place)])[1] for place in ("here", "there/and/deeper"))
    assert one == other


@pytest.mark.parametrize("pattern", ["missing.jsonl", "missing/**/*.jsonl", "readme.txt", "."])
def test_a_pattern_without_exports_is_an_error_that_names_it(tmp_path, pattern):
    (tmp_path / "readme.txt").write_text("no export")
    with pytest.raises(InputError, match=r"expected a \.jsonl or \.parquet file"):
        read_annotations([str(tmp_path / pattern)])


RATED = {"a": {"accuracy": 5, "completeness": None}, "b": {"accuracy": 2}}


@pytest.mark.parametrize("as_map", [True, False])
def test_parquet_says_the_same_as_jsonl(tmp_path, as_map):
    items = [
        line("1", judgements=[judgement(ratings=RATED, seconds=4.5)]),
        line("2", image={"sha256": "0" * 64}),
        line("3", judgements=[judgement("l-2", ranking=[["c"]], ratings={"c": {"accuracy": 3.5}})]),
    ]
    table = pa.Table.from_pylist(items)
    if as_map:
        rating = pa.struct([(name, pa.float64()) for name in ("accuracy", "completeness")])
        ratings = pa.map_(pa.string(), rating)
        old = table.schema.field("judgements").type.value_type
        new = pa.list_(pa.struct([field.with_type(ratings) if field.name == "ratings" else field for field in old]))
        columns = [table["image"], table["captions"], _with_maps(items, new)]
        table = pa.table(columns, names=["image", "captions", "judgements"])
    pq.write_table(table, tmp_path / "labels.parquet")
    export(tmp_path, "same.jsonl", *items)
    from_parquet, rejected = read_annotations([str(tmp_path / "labels.parquet")])
    from_jsonl, _ = read_annotations([str(tmp_path / "same.jsonl")])
    assert rejected == []
    assert [item.judged for item in from_parquet] == [item.judged for item in from_jsonl]
    assert [item.line for item in from_parquet] == [1, 2, 3]


def _with_maps(items: list[dict], dtype: pa.DataType) -> pa.Array:
    rows = [
        [{**each, "ratings": list(each.get("ratings", {}).items())} for each in item["judgements"]] for item in items
    ]
    return pa.array(rows, type=dtype)


def test_a_bad_parquet_row_costs_itself(tmp_path):
    items = [line("1"), line("2", judgements=[judgement(ranking=[["z"]])]), line("3")]
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "labels.parquet")
    lines, rejected = read_annotations([str(tmp_path)])
    assert [item.judged.image.key for item in lines] == ["1", "3"]
    assert [(item.line, item.reason) for item in rejected] == [(2, "caption_unknown")]


def test_parquet_of_another_kind_is_rejected_row_by_row(tmp_path):
    pq.write_table(pa.table({"judgements": [1, 2], "b": ["x", None]}), tmp_path / "labels.parquet")
    _, rejected = read_annotations([str(tmp_path)])
    assert [item.line for item in rejected] == [1, 2]


def test_a_parquet_file_that_is_none_is_an_error_that_names_it(tmp_path):
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"labels\.parquet"):
        read_annotations([str(tmp_path)])


def test_a_bucket_is_read_as_a_folder_is(tmp_path, monkeypatch):
    export(tmp_path, "labels/a.jsonl", line("1"))
    export(tmp_path, "labels/more/b.jsonl", b"oops")
    export(tmp_path, "labels-old/c.jsonl", b"oops")
    monkeypatch.setattr(read, "open_store", lambda url: LocalStore(tmp_path / url.removeprefix("s3://bucket/")))
    lines, rejected = read_annotations(["s3://bucket/labels/", "s3://bucket/labels/a.jsonl"])
    assert [item.file for item in [*lines, *rejected]] == ["a.jsonl", "more/b.jsonl"]
    with pytest.raises(InputError, match="missing"):
        read_annotations(["s3://bucket/labels/missing.jsonl"])
