"""Indexing shards: what becomes a pair, what is refused and why, and that nothing is ever lost."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compalign_dagster import parquet
from compalign_dagster.crawl import tables
from compalign_dagster.crawl.index import Budgets, ShardIndex, concat, index_shard, make_pair_id
from compalign_dagster.crawl.reasons import MEANINGS, Reason
from compalign_dagster.crawl.shards import Shard, read_member
from compalign_dagster.store import LocalStore, ObjectMissingError
from tests.support import shard_builder as build

_QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def index_bytes(folder: Path, data: bytes, budgets: Budgets | None = None) -> ShardIndex:
    return index_shard(build.place(folder, data), budgets or Budgets())


def refusals(index: ShardIndex) -> Counter[tuple[str, str]]:
    """How often each (unit, reason) occurs."""
    return Counter((row["unit"], row["reason"]) for row in index.quarantine.to_pylist())


def pairs(index: ShardIndex) -> list[tuple[str, int, str]]:
    return [(row["key"], row["caption_index"], row["caption"]) for row in index.pairs.to_pylist()]


def conserves(index: ShardIndex) -> bool:
    """Both identities, counted from the tables and the summary apart from the indexer's own check."""
    summary, units = index.summary, Counter(index.quarantine["unit"].to_pylist())
    return (
        summary["members"] == summary["used"] + units["member"] + summary["ignored"]
        and summary["captions"] == index.pairs.num_rows + units["caption"]
        and summary["pairs"] == index.pairs.num_rows
        and summary["quarantined_members"] == units["member"]
        and summary["quarantined_captions"] == units["caption"]
    )


def test_a_good_shard_gives_one_pair_a_sample_with_its_place_and_its_facts(tmp_path):
    data = build.good_shard(3)
    index = index_bytes(tmp_path, data)
    assert pairs(index) == [("00000", 0, "thing 0"), ("00001", 0, "thing 1"), ("00002", 0, "thing 2")]
    assert index.quarantine.num_rows == 0
    assert index.pairs.schema == tables.PAIRS
    assert index.quarantine.schema == tables.QUARANTINE
    assert index.summary == {
        "shard": "cc3m/00000.tar", "corpus": "cc3m", "status": "ok", "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "members": 9, "used": 9, "quarantined_members": 0,
        "ignored": 0, "captions": 3, "pairs": 3, "quarantined_captions": 0, "disagreements": 0,
    }  # fmt: skip
    first = index.pairs.to_pylist()[0]
    image = build.picture(0)
    assert first["image_sha256"] == hashlib.sha256(image).hexdigest()
    assert (first["width"], first["height"], first["image_format"]) == (32, 24, "JPEG")
    assert (first["corpus"], first["url"]) == ("cc3m", "https://example.org/00000.jpg")


def test_a_pair_id_is_the_digest_of_the_raw_image_digest_and_the_captions_bytes(tmp_path):
    row = index_bytes(tmp_path, build.tar(build.sample("a", "grüße"))).pairs.to_pylist()[0]
    image = hashlib.sha256(build.picture(0)).digest()
    assert row["pair_id"] == hashlib.sha256(image + "grüße".encode()).hexdigest()[:32]
    assert row["pair_id"] == make_pair_id(image, "grüße".encode())


def test_pair_ids_survive_renaming_and_another_shard(tmp_path):
    one = index_bytes(tmp_path / "1", build.tar(build.sample("a")))
    other = index_shard(build.place(tmp_path / "2", build.tar(build.sample("zz/b")), "laion/9.tar"))
    assert one.pairs["pair_id"] == other.pairs["pair_id"]


@pytest.mark.parametrize("name", build.HOSTILE)
def test_no_hostile_shard_raises_and_every_refusal_has_a_documented_reason(name, tmp_path):
    index = index_bytes(tmp_path, build.HOSTILE[name]())
    assert conserves(index)
    assert index.summary["status"] in {"ok", "partial", "unreadable"}
    for row in index.quarantine.to_pylist():
        assert row["reason"] in MEANINGS
        assert "expected" in row["detail"]
        assert "found" in row["detail"]


@pytest.mark.parametrize("name", sorted(build.HOSTILE.keys() - {"truncated_tar", "empty_file", "empty_shard",
                                                                "gzipped", "damaged_header", "zeroed_header",
                                                                "lying_size", "links"}))  # fmt: skip
def test_trouble_in_one_sample_loses_no_other(name, tmp_path):
    kept = {key for key, _, _ in pairs(index_bytes(tmp_path, build.HOSTILE[name]()))}
    assert kept >= {"00000"}
    if name != "duplicate_key_after_half_a_sample":
        assert kept >= {"00000", "00001", "00002"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image_is_text", {("member", "image_undecodable"): 1, ("caption", "image_unusable"): 1}),
        ("cut_image", {("member", "image_truncated"): 1, ("caption", "image_unusable"): 1}),
        ("image_bomb", {("member", "image_too_large"): 1, ("caption", "image_unusable"): 1}),
        ("missing_caption", {("member", "caption_missing"): 1}),
        ("null_caption", {("member", "caption_missing"): 1}),
        ("empty_caption", {("caption", "caption_empty"): 1}),
        ("huge_caption", {("caption", "caption_too_long"): 1}),
        ("text_not_utf8", {("caption", "caption_not_utf8"): 1}),
        ("json_not_utf8", {("member", "json_malformed"): 1}),
        ("json_nested_deeply", {("member", "json_malformed"): 1}),
        ("half_a_surrogate", {("caption", "caption_not_utf8"): 1}),
        ("caption_not_text", {("caption", "caption_not_text"): 1}),
        ("captions_with_nulls", {("caption", "caption_not_text"): 2, ("caption", "caption_empty"): 1}),
        ("too_many_captions", {("member", "captions_too_many"): 1}),
        ("duplicate_keys", {("member", "key_duplicate"): 3}),
        ("orphan_captions", {("caption", "image_missing"): 3}),
        ("climbing_names", {("member", "name_unsafe"): 5}),
        ("links", {("member", "member_not_a_file"): 3}),
        ("joined_archives", {("shard", "zero_gap"): 1}),
        ("without_end_marker", {("shard", "end_missing"): 1}),
        ("empty_file", {("shard", "shard_empty"): 1}),
        ("empty_shard", {("shard", "shard_empty"): 1}),
        ("gzipped", {("shard", "not_a_tar"): 1}),
        ("ignored_members", {}),
        ("interleaved", {}),
        ("pickle_member", {}),
    ],
)
def test_each_trouble_is_refused_for_its_own_reason_and_nothing_else(name, expected, tmp_path):
    assert refusals(index_bytes(tmp_path, build.HOSTILE[name]())) == expected


def test_everything_before_the_cut_of_a_truncated_tar_is_indexed(tmp_path):
    index = index_bytes(tmp_path, build.truncated_tar(10, members_whole=15))
    assert [key for key, _, _ in pairs(index)] == [f"{at:05d}" for at in range(5)]
    assert index.summary["status"] == "partial"
    [row] = index.quarantine.to_pylist()
    assert (row["unit"], row["reason"], row["member"]) == ("member", "member_truncated", "00005.jpg")
    assert row["offset"] == build.header_offsets(build.good_shard(10))[15]


@pytest.mark.parametrize("builder", [build.damaged_header, build.zeroed_header, build.lying_size])
def test_members_after_a_damaged_header_are_still_indexed(builder, tmp_path):
    data = builder()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:  # the reason for a reader of our own
        try:
            seen = len(archive.getmembers())
        except (tarfile.ReadError, OverflowError):
            seen = 0
    index = index_bytes(tmp_path, data)
    assert index.summary["used"] > seen
    assert index.summary["status"] == "partial"
    damage = [row for row in index.quarantine.to_pylist() if row["unit"] == "member"]
    assert [row["reason"] in {"header_damaged", "member_truncated"} for row in damage] == [True]
    keys = {key for key, _, _ in pairs(index)}
    lost = {f"{at:05d}" for at in range(10 if builder is not build.lying_size else 4)} - keys
    assert len(lost) == 1  # the sample whose image had the header, and no other


def test_every_single_damaged_header_costs_one_member_and_is_reported_at_its_offset(tmp_path):
    whole = build.good_shard(4)
    for at in build.header_offsets(whole):
        data = bytearray(whole)
        data[at + 130] ^= 0x55  # inside the size
        index = index_bytes(tmp_path / str(at), bytes(data))
        assert index.summary["used"] + 1 == index.summary["members"] == 12
        assert at in index.quarantine["offset"].to_pylist()
        assert index.pairs.num_rows >= 3


def test_bytes_inserted_in_the_middle_are_skipped_at_any_alignment(tmp_path):
    whole = build.good_shard(4)
    at = build.header_offsets(whole)[6]
    index = index_bytes(tmp_path, whole[:at] + b"junk" * 25 + whole[at:])
    assert index.pairs.num_rows == 4
    assert refusals(index) == {("member", "header_damaged"): 1}
    for row in index.pairs.to_pylist():
        data = read_member(build.place(tmp_path, whole[:at] + b"junk" * 25 + whole[at:]), row["image_offset"],
                           row["image_length"])  # fmt: skip
        assert hashlib.sha256(data).hexdigest() == row["image_sha256"]


def test_a_long_name_that_was_lost_does_not_become_a_short_wrong_one(tmp_path):
    name = "folder/" + "k" * 150
    data = bytearray(build.tar([*build.samples(1), *build.sample(name), *build.samples(1, start=1)]))
    data[data.index(b"././@LongLink")] ^= 0xFF
    index = index_bytes(tmp_path, bytes(data))
    assert {key for key, _, _ in pairs(index)} <= {"00000", "00001", name}
    assert conserves(index)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read(form, tmp_path):
    names = ["d/" + "x" * 180, "日本語/été", "deep/" * 30 + "0001"]
    data = build.tar([entry for name in names for entry in build.sample(name)], form=form)
    assert [key for key, _, _ in pairs(index_bytes(tmp_path, data))] == names


def test_a_leading_dot_slash_is_not_part_of_the_key(tmp_path):
    index = index_bytes(tmp_path, build.tar([("./a/b.jpg", build.picture()), ("./a/b.txt", b"x")]))
    assert pairs(index) == [("a/b", 0, "x")]


def test_extensions_are_read_in_any_case(tmp_path):
    assert index_bytes(tmp_path, build.tar([("a.JPG", build.picture()), ("a.TXT", b"x")])).pairs.num_rows == 1


def test_captions_come_from_the_list_then_the_text_then_the_single_caption(tmp_path):
    def found(*entries: tuple[str, bytes]) -> list[str]:
        index = index_bytes(tmp_path, build.tar([("a.jpg", build.picture()), *entries]))
        return [caption for _, _, caption in pairs(index)]

    everything = json.dumps({"captions": ["l0", "l1"], "caption": "single"}).encode()
    single = json.dumps({"captions": [], "caption": "single"}).encode()
    assert found(("a.txt", b"text"), ("a.json", everything)) == ["l0", "l1"]
    assert found(("a.txt", b"text"), ("a.json", single)) == ["text"]
    assert found(("a.json", single)) == ["single"]


def test_a_refused_caption_keeps_its_index(tmp_path):
    index = index_bytes(tmp_path, build.captions_with_nulls())
    assert [(at, text) for key, at, text in pairs(index) if key == "bad"] == [(0, "first"), (2, "third")]
    assert index.quarantine["caption_index"].to_pylist() == [1, 3, 4]


@pytest.mark.parametrize(
    ("text", "record", "expected"),
    [
        (b"same", {"caption": "same"}, 0),
        (b"same\n", {"caption": "same"}, 0),
        (b"one", {"caption": "other"}, 1),
        (b"one", {"captions": ["zero", "one"]}, 0),
        (b"two", {"captions": ["zero", "one"]}, 1),
        (b"caf\xe9", {"caption": "cafe"}, 1),
        (b"one", {"caption": None}, 0),
    ],
)
def test_disagreement_between_text_and_json_is_counted(text, record, expected, tmp_path):
    entries = [("a.jpg", build.picture()), ("a.txt", text), ("a.json", json.dumps(record).encode())]
    assert index_bytes(tmp_path, build.tar(entries)).summary["disagreements"] == expected


def test_nothing_pairs_across_two_samples_of_one_key(tmp_path):
    index = index_bytes(tmp_path, build.duplicate_key_after_half_a_sample())
    assert [key for key, _, _ in pairs(index)] == ["00000"]
    index = index_bytes(tmp_path, build.duplicate_keys())
    assert ("00000", 0, "thing 0") in pairs(index)


def test_a_second_image_in_another_format_does_not_cost_the_caption(tmp_path):
    entries = [("a.jpg", build.picture(1)), ("a.png", build.picture(2, form="PNG")), ("a.txt", b"x")]
    index = index_bytes(tmp_path, build.tar(entries))
    assert pairs(index) == [("a", 0, "x")]
    assert refusals(index) == {("member", "image_extra"): 1}


def test_members_above_the_budget_are_refused_unread(tmp_path):
    entries = [*build.samples(1), ("big.jpg", b"x" * 5000), ("big.txt", b"x")]
    index = index_bytes(tmp_path, build.tar(entries), Budgets(member_bytes=4000))
    assert refusals(index) == {("member", "member_too_large"): 1, ("caption", "image_unusable"): 1}
    assert index.summary["status"] == "ok"


def test_a_shard_with_too_many_members_is_read_up_to_the_budget(tmp_path):
    index = index_bytes(tmp_path, build.good_shard(4), Budgets(members=6))
    assert index.pairs.num_rows == 2
    assert index.summary["status"] == "partial"
    assert refusals(index) == {("shard", "members_too_many"): 1}
    assert index.summary["sha256"] == hashlib.sha256(build.good_shard(4)).hexdigest()


@pytest.mark.parametrize(("name", "status"), [("empty_file", "unreadable"), ("gzipped", "unreadable"),
                                              ("empty_shard", "ok"), ("truncated_tar", "partial")])  # fmt: skip
def test_the_status_says_how_much_could_be_read(name, status, tmp_path):
    assert index_bytes(tmp_path, build.HOSTILE[name]()).summary["status"] == status


def test_nothing_is_written_under_a_members_name(tmp_path):
    for name in ("climbing_names", "links", "pickle_member"):
        index_bytes(tmp_path, build.HOSTILE[name]())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "cc3m" / "00000.tar"]


def test_equal_shards_give_equal_bytes(tmp_path):
    for at in ("1", "2"):
        index = index_bytes(tmp_path / at, build.captions_with_nulls())
        parquet.write(index.pairs, tmp_path / at / "pairs.parquet")
        parquet.write(index.quarantine, tmp_path / at / "quarantine.parquet")
    for name in ("pairs.parquet", "quarantine.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_the_index_of_a_known_shard_is_pinned_so_that_changed_bytes_need_a_new_code_version(tmp_path):
    image = bytes.fromhex(  # a 1x1 GIF: no encoder's version is in these bytes
        "47494638396101000100800000ff000000000021f90400000000002c00000000010001000002024401003b"
    )
    entries = [
        ("a.gif", image),
        ("a.txt", b"x"),
        ("b.gif", b"no"),
        ("b.txt", b"y"),
        ("c.json", b'{"captions":["z"]}'),
    ]
    index = index_bytes(tmp_path, build.tar(entries))
    rows = [index.pairs.to_pylist(), index.quarantine.to_pylist(), index.summary]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert digest == "812d2cb94a6975ee03a7e81df8c7959cb41f7488ef5a3ff42bc25b2b9b479e86"


def test_a_shard_that_is_gone_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ObjectMissingError, match=r"gone\.tar"):
        index_shard(Shard("gone.tar", LocalStore(tmp_path), "gone.tar"))


def test_several_indexes_join_into_tables_with_one_row_a_shard(tmp_path):
    one = index_shard(build.place(tmp_path, build.good_shard(2), "a/0.tar"))
    two = index_shard(build.place(tmp_path, build.cut_image(), "b/0.tar"))
    joined = concat([one, two])
    assert joined.pairs.num_rows == 5
    assert joined.quarantine.num_rows == 2
    assert joined.shards.schema == tables.SHARDS
    assert joined.shards["shard"].to_pylist() == ["a/0.tar", "b/0.tar"]
    assert concat([]).pairs.schema == tables.PAIRS


def test_every_reason_has_a_meaning_and_none_is_missing():
    assert set(MEANINGS) == set(Reason)


@_QUICK
@given(data=st.binary(max_size=4096))
def test_any_bytes_as_a_shard_never_raise_and_conserve(data, tmp_path):
    assert conserves(index_bytes(tmp_path, data))


@settings(_QUICK, max_examples=150)
@given(edits=st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(max_size=40), st.integers(0, 700)), max_size=6))
def test_any_damage_to_a_good_shard_never_raises_conserves_and_leaves_true_places(edits, tmp_path):
    data = build.good_shard(3)
    for at, new, removed in edits:
        at %= len(data) + 1
        data = data[:at] + new + data[at + removed :]
    shard = build.place(tmp_path, data)
    index = index_shard(shard)
    assert conserves(index)
    for row in index.pairs.to_pylist():
        image = read_member(shard, row["image_offset"], row["image_length"])
        assert hashlib.sha256(image).hexdigest() == row["image_sha256"]


_KEYS = st.text(st.characters(codec="utf-8", exclude_characters="./\\", exclude_categories=("C", "Z")), min_size=1,
                max_size=120)  # fmt: skip
_CAPTIONS = st.text(st.characters(codec="utf-8"), max_size=60)


@_QUICK
@given(
    texts=st.dictionaries(_KEYS, _CAPTIONS, max_size=6),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    order=st.randoms(use_true_random=False),
)
def test_images_of_any_good_shard_are_read_back_byte_for_byte(texts, form, order, tmp_path):
    written = {key: build.picture(at) for at, key in enumerate(texts)}
    entries = [(f"{key}.jpg", image) for key, image in written.items()]
    entries += [(f"{key}.txt", text.encode()) for key, text in texts.items()]
    order.shuffle(entries)
    shard = build.place(tmp_path, build.tar(entries, form=form))
    index = index_shard(shard)
    assert {(key, text) for key, _, text in pairs(index)} == {
        (key, text) for key, text in texts.items() if text.strip()
    }
    for row in index.pairs.to_pylist():
        assert read_member(shard, row["image_offset"], row["image_length"]) == written[row["key"]]
