import io
import json

import pyarrow as pa
import pytest

from compalign_dagster import parquet
from compalign_dagster.annotation.tables import CAPTIONS, REJECTED
from compalign_dagster.crawl.clusters import CLUSTERS, EMBEDDINGS
from compalign_dagster.crawl.tables import QUARANTINE
from compalign_dagster.lineage.erase import MARKER, Target, emptied, landed_blanks, resharded_blanks, shows, untold
from compalign_dagster.pages.cards import Card
from compalign_dagster.pages.filtered import Section, Shown, filtered_page
from compalign_dagster.scoring.tables import SCORES
from compalign_dagster.versions import digest_bytes
from tests.support.shard_builder import picture, tar

IMAGE = picture(1)
TARGET = Target(
    samples=frozenset({("a.tar", "k1")}),
    pair_ids=frozenset({"1" * 32}),
    images=frozenset({digest_bytes(IMAGE)}),
    lengths=frozenset({len(IMAGE)}),
    texts=frozenset({"a caption <b>with</b> 'quotes' & more", "https://a.example/?x=1&y=2"}),
)


def scores(*pairs):
    rows = [
        {"pair_id": pair * 32, "shard": "a.tar", "key": "k9", "caption_index": 0, "caption": f"text {pair}",
         "reward": 1.0, "model_version": "m", "corpus": "c"} for pair in pairs
    ]  # fmt: skip
    return parquet.from_rows(rows, SCORES)


def test_only_texts_of_the_targets_rows_are_emptied():
    before = scores("0", "1", "2")
    after, rows = emptied(before, TARGET, "t-1")
    assert rows == 1
    assert after["caption"].to_pylist() == ["text 0", "", "text 2"]
    assert after.drop_columns("caption").equals(before.drop_columns("caption"))
    assert after.schema.equals(before.schema)
    assert [field.metadata for field in after.schema] == [field.metadata for field in before.schema]
    assert after.schema.metadata[MARKER] == b"t-1"
    assert emptied(after, TARGET, "t-2") is None


def test_content_decides_before_place_and_place_where_there_is_no_content():
    table = scores("0").set_column(2, SCORES.field("key"), pa.array(["k1"]))
    assert emptied(table, TARGET, "t") is None
    row = {"shard": "a.tar", "unit": "caption", "reason": "caption_empty", "detail": "found 'secret'"}
    refused = parquet.from_rows([{**row, "key": "k1"}, {**row, "key": "k2"}, {**row, "key": None}], QUARANTINE)
    after, _ = emptied(refused, TARGET, "t")
    assert after["detail"].to_pylist() == ["", "found 'secret'", "found 'secret'"]


def test_a_text_in_a_row_that_names_no_sample_is_seen():
    detail = "found 'A caption <b>with</b> quotes and more'"
    target = Target(texts=frozenset({"a caption <b>with</b> quotes and more"}))
    row = {"shard": "a.tar", "unit": "caption", "reason": "caption_empty", "detail": detail}
    assert not untold(parquet.from_rows([{**row, "key": "k1"}], QUARANTINE), target)
    assert untold(parquet.from_rows([{**row, "key": None}], QUARANTINE), target)
    refused = {"file": "a.jsonl", "line": 1, "reason": "no_image"}
    assert untold(parquet.from_rows([{**refused, "detail": detail}], REJECTED), target)
    assert not untold(parquet.from_rows([{**refused, "detail": "nothing of it"}], REJECTED), target)


def test_judged_captions_of_an_image_go_with_it():
    row = {"caption_id": "a", "caption_source": "human", "caption": "written for it"}
    table = parquet.from_rows([{**row, "image_id": digest_bytes(IMAGE)}, {**row, "image_id": "f" * 64}], CAPTIONS)
    after, _ = emptied(table, TARGET, "t")
    assert after["caption"].to_pylist() == ["", "written for it"]


def test_a_table_without_texts_or_rows_stays():
    assert emptied(pa.table({"pair_id": ["1" * 32]}), TARGET, "t") is None
    assert emptied(SCORES.empty_table(), TARGET, "t") is None


def test_blanks_are_the_members_of_the_samples_and_the_image_under_any_name():
    data = tar(
        [("k1.jpg", picture(2)), ("k1.txt", b"one"), ("k10.jpg", picture(3)), ("k7.jpg", IMAGE), ("./k1.json", b"{}")]
    )
    places = landed_blanks(io.BytesIO(data), len(data), {"k1"}, TARGET)
    assert {data[offset : offset + length] for offset, length in places} == {picture(2), b"one", IMAGE, b"{}"}


def test_blanks_of_a_resharded_tar_follow_the_source_that_it_names():
    def facts(shard, key, *pairs):
        told = {"pair_ids": pairs} if pairs else {}
        return json.dumps({"source": {"shard": shard, "key": key}, **told}).encode()

    data = tar(
        [("000.jpg", picture(2)), ("000.json", facts("a.tar", "k1")),
         ("001.jpg", picture(3)), ("001.json", facts("a.tar", "k2", "0" * 32)),
         ("002.jpg", IMAGE), ("002.json", facts("b.tar", "k1", "0" * 32)),
         ("003.jpg", picture(4)), ("003.json", facts("b.tar", "k1", "1" * 32)),
         ("004.jpg", picture(5)), ("004.json", b"[" * 9),
         ("005.jpg", picture(6)), ("005.json", facts("a.tar", "k1", "0" * 32))]  # of another delivery of a.tar
    )  # fmt: skip
    places = resharded_blanks(io.BytesIO(data), len(data), TARGET)
    images = [data[offset : offset + length] for offset, length in places]
    assert [image for image in images if not image.startswith(b"{")] == [picture(2), IMAGE, picture(4)]


@pytest.mark.parametrize(
    ("caption", "note"),
    [
        ("a caption <b>with</b> 'quotes' & more", ""),
        ("somebody else's", "kept · a.tar k1"),
        ("https://a.example/?x=1&y=2", ""),
        ("x", "1" * 32),
    ],
)
def test_a_page_that_shows_a_pair_is_recognised(caption, note):
    assert shows(page(caption, note), TARGET)
    assert not shows(page("another caption", "kept · a.tar k2"), TARGET)


def page(caption, note):
    facts = {"pairs": 1, "kept": 1, "dropped_by_reason": {}}
    shown = Shown("shown", [Card(picture(9), caption, 1.0, note)], "command", "sql")
    return filtered_page(facts, {"edges": [], "kept": [], "dropped": []}, [Section("kept", 1, [shown])])


def test_the_vector_of_an_image_goes_with_it_and_no_other():
    rows = [{"image_sha256": digest_bytes(IMAGE), "embedding": b"12"}, {"image_sha256": "f" * 64, "embedding": b"34"}]
    for schema in (EMBEDDINGS, CLUSTERS):
        before = parquet.from_rows([{**row, "cluster": 1, "images": 1} for row in rows], schema)
        after, count = emptied(before, TARGET, "t")
        assert count == 1
        assert after["embedding"].to_pylist() == [None, b"34"]
        assert after.drop_columns("embedding").equals(before.drop_columns("embedding"))
        assert after.schema.equals(before.schema)
        assert emptied(after, TARGET, "t") is None
