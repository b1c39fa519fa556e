import threading
from pathlib import Path

import polars as pl
import pytest

from compalign_dagster import latest, parquet
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.errors import InputError
from compalign_dagster.selection import blocks
from compalign_dagster.selection.blocks import BLOCKS, Entry, entry
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import digest_bytes

_PHASH = "00000000000000ff"


def _pair(at: int, **columns) -> dict:
    image = digest_bytes(f"image {at}".encode())
    return {
        "pair_id": digest_bytes(f"pair {at}".encode())[:32],
        "shard": "cc/0.tar",
        "key": f"{at:05d}",
        "caption_index": 0,
        "caption": f"a caption, number {at}",
        "image_offset": 512 * at,
        "image_length": 100,
        "width": 64,
        "height": 64,
        "image_sha256": image,
        "image_format": "JPEG",
        "image_phash": f"{(at * 0x9E3779B97F4A7C15) % 2**64:016x}",
        "caption_characters": 10,
        "caption_words": 2,
        "caption_repetition": 0.0,
        "caption_non_letters": 0.0,
        "corpus": "cc",
        "url": f"https://site{at}.example/{at}.jpg",
        **columns,
    }


def _index(tmp_path: Path, rows: list[dict], name: str = "pairs.parquet") -> Path:
    return parquet.write(parquet.from_rows(rows, PAIRS), tmp_path / name)


def _blocks(*found: Entry):
    return parquet.from_rows([vars(item) for item in found], BLOCKS)


def _keys(found: pl.DataFrame) -> list[str]:
    return found["key"].to_list()


@pytest.mark.parametrize("kind", ["pair_id", "image_sha256", "url"])
def test_an_entry_names_the_pairs_with_its_value_and_no_other(tmp_path, kind):
    rows = [_pair(at) for at in range(5)]
    found = blocks.matches([_index(tmp_path, rows)], _blocks(entry(kind, rows[3][kind], request="r-1")))
    assert found.to_dicts() == [{"shard": "cc/0.tar", "key": "00003", "caption_index": 0, "reason": "takedown"}]


def test_an_image_is_stopped_wherever_it_comes_back(tmp_path):
    image = _pair(0)["image_sha256"]
    first = _index(tmp_path, [_pair(0), _pair(1)])
    later = _index(tmp_path, [_pair(7, shard="cc/9.tar", image_sha256=image, url=None)], "later.parquet")
    listed = _blocks(entry("image_sha256", image.upper(), request="r-1"))
    assert blocks.matches([first, later], listed)["shard"].to_list() == ["cc/0.tar", "cc/9.tar"]


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.com/a.jpg",
        "HTTPS://IMAGES.EXAMPLE.COM:443/a.jpg",
        "https://cdn.images.example.com./a.jpg",
        "https://user:secret@images.example.com/a.jpg",
        "https:\\\\images.example.com\\a.jpg",
        "ht\ntps://images.exa\tmple.com/a.jpg",
        "https://images%2Eexample.com/a.jpg",
        "https://images。example。com/a.jpg",
        "https://ｉｍａｇｅｓ.example.com/a.jpg",
        "//images.example.com/a.jpg".replace("//", "https:////"),
    ],
)
def test_a_host_is_found_however_its_url_is_written(tmp_path, url):
    found = blocks.matches(
        [_index(tmp_path, [_pair(0, url=url), _pair(1)])],
        _blocks(entry("url_host", "Images.Example.COM.", request="r")),
    )
    assert _keys(found) == ["00000"]


@pytest.mark.parametrize(
    "url",
    [
        "https://notimages.example.com/a.jpg",
        "https://example.com/images.example.com",
        "https://other.example/?u=https://images.example.com/",
        "https://images.example.com@other.example/a.jpg",
        "https://images.example.com.other.example/a.jpg",
        "images.example.com",
        "",
        None,
        "https://[::1",
        "https://\udce9".encode("utf-8", "replace").decode(),
    ],
)
def test_a_host_is_not_found_in_urls_of_others(tmp_path, url):
    listed = _blocks(entry("url_host", "images.example.com", request="r"))
    assert blocks.matches([_index(tmp_path, [_pair(0, url=url)])], listed).is_empty()


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:DB8::7", "[2001:db8:0::7]"])
def test_an_address_is_a_host(tmp_path, host):
    rows = [_pair(0, url="http://192.0.2.7:80/a"), _pair(1, url="http://[2001:db8:0:0::7]:80/a")]
    found = blocks.matches([_index(tmp_path, rows)], _blocks(entry("url_host", host, request="r")))
    assert _keys(found) == ["00000" if "." in host else "00001"]


def test_a_host_in_another_script_is_one_with_its_punycode(tmp_path):
    pairs = _index(
        tmp_path, [_pair(0, url="https://bücher.example/1"), _pair(1, url="https://xn--bcher-kva.example/2")]
    )
    for host in ("BÜCHER.example", "xn--bcher-kva.example"):
        assert _keys(blocks.matches([pairs], _blocks(entry("url_host", host, request="r")))) == ["00000", "00001"]


@pytest.mark.parametrize("distance", [0, 1, 8, 16])
def test_near_images_are_those_within_the_distance(tmp_path, distance):
    hashes = [int(_PHASH, 16) ^ ((1 << bits) - 1) << 20 for bits in range(20)]
    pairs = _index(tmp_path, [_pair(at, image_phash=f"{value:016x}") for at, value in enumerate(hashes)])
    listed = _blocks(entry("image_near", _PHASH, distance=distance, request="r"))
    assert blocks.matches([pairs], listed).height == distance + 1


def test_takedown_wins_over_evaluation_overlap_and_an_occurrence_is_named_once(tmp_path):
    row = _pair(0)
    listed = _blocks(
        entry("url", row["url"], request="a", reason="evaluation_overlap"),
        entry("image_sha256", row["image_sha256"], request="z"),
        entry("pair_id", row["pair_id"], request="b", reason="evaluation_overlap"),
    )
    found = blocks.named([pl.read_parquet(_index(tmp_path, [row]))], listed)
    assert found.select("reason", "request").rows() == [("takedown", "z")]


def test_the_answer_is_sorted_and_does_not_depend_on_the_order_of_files(tmp_path):
    one = _index(tmp_path, [_pair(at, shard="b.tar") for at in (2, 1)], "one.parquet")
    two = _index(tmp_path, [_pair(at, shard="a.tar", caption_index=at) for at in (1, 0)], "two.parquet")
    listed = _blocks(entry("url_host", "site1.example", request="r"), entry("url_host", "site0.example", request="r"))
    found = blocks.matches([one, two], listed)
    assert found.equals(blocks.matches([two, one], listed))
    assert found.select("shard", "key").rows() == [("a.tar", "00000"), ("a.tar", "00001"), ("b.tar", "00001")]
    assert found.schema == blocks.matches([], listed).schema == blocks.matches([one], BLOCKS.empty_table()).schema


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("pair_id", "zz"),
        ("pair_id", "0" * 31),
        ("image_sha256", "0" * 32),
        ("image_near", "0x00000000000000ff"),
        ("url", ""),
        ("url", "x" * 9000),
        ("url_host", "com"),
        ("url_host", ""),
        ("url_host", "https://example.com/a"),
        ("url_host", "a b.example"),
        ("url_host", "*"),
        ("host", "example.com"),
    ],
)
def test_an_entry_that_says_nothing_or_too_much_is_refused(kind, value):
    with pytest.raises(InputError, match="block list"):
        entry(kind, value, request="r")


def test_distances_and_requests_are_checked():
    for arguments in ({"distance": 17}, {"distance": -1}, {"request": " \n\x1b"}, {"reason": "below_cut"}):
        with pytest.raises(InputError, match="block list"):
            entry("image_near", _PHASH, **{"request": "r", **arguments})
    with pytest.raises(InputError, match="distance"):
        entry("pair_id", "0" * 32, request="r", distance=3)


def test_the_list_keeps_no_url(tmp_path):
    store = LocalStore(tmp_path)
    listed = blocks.add(store, [entry("url", "https://site1.example/1.jpg", request="r")])
    assert b"site1" not in listed.fetch("entries.parquet").read_bytes()
    assert blocks.entries(listed)["value"].to_pylist() == [digest_bytes(b"https://site1.example/1.jpg")]


def test_adding_keeps_what_was_there_and_adding_it_again_changes_nothing(tmp_path):
    store = LocalStore(tmp_path)
    assert blocks.in_force(store) is None
    assert blocks.entries(None).num_rows == 0
    first = blocks.add(store, [entry("url_host", "a.example", request="one")])
    second = blocks.add(store, [entry("url_host", "b.example", request="two")])
    again = blocks.add(store, [entry("url_host", "A.example.", request="one")])
    assert again.manifest_key == second.manifest_key
    assert blocks.entries(blocks.in_force(store))["value"].to_pylist() == ["a.example", "b.example"]
    assert blocks.withdraw(store, "two").data_version == first.data_version
    with pytest.raises(InputError, match="two"):
        blocks.withdraw(store, "two")


def test_those_who_add_at_once_all_win(tmp_path):
    hosts = [f"h{at}.example" for at in range(8)]
    threads = [
        threading.Thread(target=blocks.add, args=(LocalStore(tmp_path), [entry("url_host", host, request=host)]))
        for host in hosts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blocks.entries(blocks.in_force(LocalStore(tmp_path)))["value"].to_pylist() == hosts


def test_the_planted_bug_of_reading_the_list_once_loses_an_entry(tmp_path):
    store = LocalStore(tmp_path)
    before = {Entry(**row) for row in blocks.entries(blocks.in_force(store)).to_pylist()}
    blocks.add(store, [entry("url_host", "a.example", request="one")])
    stale = sorted(before | {entry("url_host", "b.example", request="two")})
    latest.point(blocks._publish(store, stale))
    assert blocks.entries(blocks.in_force(store))["value"].to_pylist() == ["b.example"]
