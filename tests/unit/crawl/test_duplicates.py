"""Near-duplicate groups: exact against brute force, linear where a crawl is hostile, stable bytes."""

import io
import random
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse.csgraph import connected_components

from compalign_dagster.crawl import hamming
from compalign_dagster.crawl.duplicates import DUPLICATES, find_duplicates
from compalign_dagster.crawl.index import Budgets, index_shard
from compalign_dagster.errors import InputError
from compalign_dagster.parquet import write
from compalign_dagster.samples.scenes import random_scene, render
from tests.conftest import ROOT
from tests.support.shard_builder import place, tar


def all_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Labels of the components, by comparing every pair."""
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= distance
    return connected_components(near, directed=False)[1]


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


@st.composite
def related_hashes(draw: st.DrawFn) -> np.ndarray:
    """Distinct hashes, some of which differ from others in a few bits."""
    found = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
    flips = draw(st.lists(st.tuples(st.integers(0, 10_000), st.lists(st.integers(0, 63), max_size=7)), max_size=40))
    for origin, bits in flips:
        found.append(found[origin % len(found)] ^ sum(1 << bit for bit in set(bits)))
    return np.unique(np.array(found, np.uint64))


@settings(max_examples=150, deadline=None)
@given(related_hashes(), st.integers(0, 8))
def test_components_are_those_of_all_pairs(hashes, distance):
    assert same_partition(hamming.components(hashes, distance), all_pairs(hashes, distance))


@pytest.mark.parametrize("free_bits", [9, 12, 20, 40, 64])
def test_components_are_those_of_all_pairs_where_bands_are_popular(free_bits, monkeypatch):
    monkeypatch.setattr(hamming, "_RUN", 8)
    monkeypatch.setattr(hamming, "_PART", 300)
    monkeypatch.setattr(hamming, "_PIVOTS", 2)
    for seed in range(6):
        draw = np.random.default_rng(seed)
        hashes = np.unique(draw.integers(0, 2**64, 1200, np.uint64) >> np.uint64(64 - free_bits))
        assert same_partition(hamming.components(hashes, seed), all_pairs(hashes, seed))


def test_the_planted_bug_of_a_dropped_band_is_caught(monkeypatch):
    whole = hamming.masks
    pairs = [(0, sum(1 << bit for bit in random.Random(seed).sample(range(64), 4))) for seed in range(200)]

    def wrong() -> int:
        return sum(len(set(hamming.components(np.array(sorted(pair), np.uint64), 4))) > 1 for pair in pairs)

    assert wrong() == 0
    monkeypatch.setattr(hamming, "masks", lambda *given: whole(*given)[:-1])
    assert wrong() > 0


@pytest.mark.parametrize(("distance", "bits", "count"), [(0, 64, 9), (4, 64, 10), (4, 64, 10**8), (9, 11, 10**6)])
def test_any_difference_of_so_few_bits_leaves_one_mask_untouched(distance, bits, count):
    made = hamming.masks((1 << bits) - 1, distance, count)
    for seed in range(300):
        changed = sum(1 << bit for bit in random.Random(seed).sample(range(bits), distance))
        assert any(mask & changed == 0 for mask in made)


def test_hashes_of_another_type_and_absurd_distances_are_refused():
    with pytest.raises(ValueError, match="uint64"):
        hamming.components(np.zeros(2, np.int64), 4)
    with pytest.raises(ValueError, match="distance"):
        hamming.components(np.zeros(2, np.uint64), 17)


def index(path, rows):
    """A pair index of (shard, key, sha256, perceptual hash)."""
    names = ["shard", "key", "image_sha256", "image_phash"]
    places = {"image_offset": 512, "image_length": 9}
    pq.write_table(pa.Table.from_pylist([{**dict(zip(names, row, strict=True)), **places} for row in rows]), path)
    return path


def test_groups_hold_exact_and_near_duplicates_and_chains_of_them(tmp_path):
    far, near, chained = "00000000000000ff", "ff00000000000000", "ff0000000000000f"
    first = index(
        tmp_path / "a.parquet",
        [("a.tar", "0", "s1", far), ("a.tar", "0", "s1", far), ("a.tar", "1", "s9", near),
         ("a.tar", "2", "s3", chained)],
    )  # fmt: skip
    second = index(tmp_path / "b.parquet", [("b.tar", "0", "s3", chained), ("b.tar", "1", "s4", "ff000000000000ff")])
    found = find_duplicates([first, second], tmp_path / "out.parquet", distance=4)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.equals(DUPLICATES)
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("s3", "a.tar", "1", "s9", near, 512, 9, 4, 3),
        ("s3", "a.tar", "2", "s3", chained, 512, 9, 4, 3),
        ("s3", "b.tar", "0", "s3", chained, 512, 9, 4, 3),
        ("s3", "b.tar", "1", "s4", "ff000000000000ff", 512, 9, 4, 3),
    ]
    assert (found.images, found.grouped, found.exact, found.groups) == (5, 4, 1, 1)
    assert found.largest == [{"group_id": "s3", "group_size": 4, "group_images": 3}]


def test_a_scaled_and_reencoded_copy_in_another_shard_is_found_from_the_index_alone(tmp_path):
    chance = random.Random(3)
    scene, other = (render(random_scene(chance), chance) for _ in range(2))
    whole, copy = Image.open(io.BytesIO(scene)), io.BytesIO()
    whole.resize((whole.width // 2, whole.height // 2)).save(copy, "WEBP", quality=70)
    shards = {
        "a/0.tar": [("0.jpg", scene), ("0.txt", b"one"), ("1.jpg", other), ("1.txt", b"other")],
        "b/0.tar": [("7.webp", copy.getvalue()), ("7.json", b'{"captions": ["one", "again"]}')],
    }
    paths = []
    for name, entries in shards.items():
        pairs = index_shard(place(tmp_path, tar(entries), name), Budgets()).pairs
        paths.append(write(pairs, tmp_path / f"{name[0]}.parquet"))
    found = find_duplicates(paths, tmp_path / "out.parquet", distance=4)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["shard"], row["key"]) for row in rows] == [("a/0.tar", "0"), ("b/0.tar", "7")]
    assert (found.images, found.grouped, found.exact) == (3, 2, 0)


def test_equal_crawls_give_equal_bytes_in_any_order_of_shards(tmp_path):
    rows = [("a.tar", str(at), f"s{at}", f"{at // 3 * 0x1111:016x}") for at in range(500)]
    one, two = index(tmp_path / "1.parquet", rows[:250]), index(tmp_path / "2.parquet", rows[250:][::-1])
    find_duplicates([one, two], tmp_path / "x.parquet", distance=0)
    find_duplicates([two, one], tmp_path / "y.parquet", distance=0)
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"1.parquet", "2.parquet", "x.parquet", "y.parquet"}


def test_an_empty_crawl_has_no_groups(tmp_path):
    found = find_duplicates([], tmp_path / "out.parquet", distance=4)
    assert (found.images, found.groups, found.largest) == (0, 0, [])
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_an_index_without_hashes_is_refused_with_a_remedy(tmp_path):
    pq.write_table(pa.table({"shard": ["a"], "key": ["0"], "image_sha256": ["s"]}), tmp_path / "old.parquet")
    with pytest.raises(InputError, match=r"no image_length, image_offset, image_phash.*raw_crawl"):
        find_duplicates([tmp_path / "old.parquet"], tmp_path / "out.parquet", distance=4)


@pytest.mark.slow
def test_a_million_blank_images_are_one_group_in_linear_time_and_bounded_memory(tmp_path):
    count = 1_000_000
    keys = pa.array([f"{at:09d}" for at in range(count)])
    table = pa.table(
        {
            "shard": pa.array(["a.tar"] * count).dictionary_encode().cast(pa.string()),
            "key": keys,
            "image_sha256": keys,
            "image_phash": pa.array(["8000000000000000"] * count),
            "image_offset": pa.array([512] * count),
            "image_length": pa.array([9] * count),
        }
    )
    pq.write_table(table, tmp_path / "blank.parquet")
    probe = (
        "import sys, time; from pathlib import Path; from tests.support.memory import mib;"
        "from compalign_dagster.crawl.duplicates import find_duplicates as find;"
        "start = time.process_time();"
        "found = find([Path(sys.argv[1])], Path(sys.argv[2]), distance=4);"
        "print(found.groups, found.grouped, time.process_time() - start, mib())"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, str(tmp_path / "blank.parquet"), str(tmp_path / "out.parquet")],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    groups, grouped, seconds, peak_mib = done.stdout.split()
    assert (int(groups), int(grouped)) == (1, count)
    assert float(seconds) < 60
    assert int(peak_mib) < 2048


@pytest.mark.slow
def test_images_that_share_most_bands_are_not_compared_pairwise():
    """300,000 hashes that agree in 22 bits would be 45 billion pairs, a quarter of an hour."""
    hashes = np.unique(np.random.default_rng(0).integers(0, 1 << 42, 300_000, np.uint64))
    start = time.process_time()
    assert len(set(hamming.components(hashes, 4))) > 290_000
    assert time.process_time() - start < 60
