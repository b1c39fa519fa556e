"""Semantic clusters: planted ones are found, whatever shards they lie in, in memory that follows one shard."""

import hashlib
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from compalign_dagster import parquet
from compalign_dagster.crawl import clusters
from compalign_dagster.crawl.clusters import ASSIGNMENT, CLUSTERS, Embedded, assign, find_clusters, table_of
from compalign_dagster.errors import CompalignError

KINDS, WIDTH = 7, 24


def name_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def vectors(numbers) -> np.ndarray:
    """Unit vectors near to that of their number's remainder."""
    found = [np.random.default_rng(number).normal(scale=0.05, size=WIDTH) for number in numbers]
    for number, vector in zip(numbers, found, strict=True):
        vector[number % KINDS] += 1
    stacked = np.array(found).reshape(-1, WIDTH)
    return (stacked / np.linalg.norm(stacked, axis=1, keepdims=True)).astype(np.float32)


def shard(folder: Path, name: str, numbers, without=()) -> Embedded:
    """A shard of these images, each under its number as key and again as a second caption; some have no vector."""
    rows = [(name, f"{number:05d}", name_of(number)) for number in numbers for _ in range(2)]
    pairs = folder / f"{name}.pairs"
    parquet.write(pa.table(list(zip(*rows, strict=True)), names=["shard", "key", "image_sha256"]), pairs)
    seen = sorted(set(numbers) - set(without))
    path = folder / f"{name}.vectors"
    parquet.write(table_of([name_of(number) for number in seen], vectors(seen)), path)
    return Embedded(lambda: pairs, lambda: path, len(seen))


@pytest.fixture
def crawl(tmp_path) -> list[Embedded]:
    return [shard(tmp_path, f"s{at}", range(at * 40, at * 40 + 50), without=[at * 40 + 45]) for at in range(6)]


def found(folder: Path, shards, **options):
    folder.mkdir(exist_ok=True)
    made = find_clusters(shards, folder, **options)
    return made, parquet.read(folder / "assignment.parquet"), parquet.read(folder / "clusters.parquet")


def test_planted_clusters_are_recovered_and_every_sample_with_a_vector_is_in_one(crawl, tmp_path):
    made, table, centres = found(tmp_path / "out", crawl, clusters=KINDS)
    assert table.schema.equals(ASSIGNMENT) and centres.schema.equals(CLUSTERS)
    rows = table.to_pylist()
    assert [(row["shard"], row["key"]) for row in rows] == sorted({(row["shard"], row["key"]) for row in rows})
    assert len(rows) == 6 * 49 == made.sizes.sum()
    assert made.without == 6
    together = {(int(row["key"]) % KINDS, row["cluster"]) for row in rows}
    assert len(together) == KINDS == len({kind for kind, _ in together}) == len({cluster for _, cluster in together})
    assert made.sizes.tolist() == centres["images"].to_pylist()
    for row in centres.to_pylist():
        assert np.linalg.norm(np.frombuffer(row["embedding"], "<f2").astype(float)) == pytest.approx(1, abs=1e-2)


def test_the_nearest_image_of_a_cluster_is_of_its_kind(crawl, tmp_path):
    _, table, centres = found(tmp_path / "out", crawl, clusters=KINDS)
    kinds = {row["cluster"]: int(row["key"]) % KINDS for row in table.to_pylist()}
    number_of = {name_of(number): number for number in range(300)}
    for row in centres.to_pylist():
        assert number_of[row["image_sha256"]] % KINDS == kinds[row["cluster"]]


def test_the_same_crawl_gives_the_same_bytes_again(crawl, tmp_path):
    found(tmp_path / "one", crawl)
    found(tmp_path / "two", crawl)
    for name in ("assignment.parquet", "clusters.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_centres_do_not_depend_on_the_order_of_shards(crawl, tmp_path):
    _, _, one = found(tmp_path / "one", crawl)
    _, _, other = found(tmp_path / "two", crawl[::-1])
    assert one["embedding"].equals(other["embedding"])


def test_unless_told_there_are_as_many_clusters_as_the_root_of_the_images(crawl, tmp_path):
    made, _, _ = found(tmp_path / "out", crawl)
    assert len(made.sizes) == 18  # of 6 * 49 vectors
    many, _, _ = found(tmp_path / "out", crawl[:1], clusters=1_000)
    assert len(many.sizes) == 49, "never more than images"


def test_without_images_there_are_no_clusters(tmp_path):
    empty = shard(tmp_path, "s", range(3), without=range(3))
    for shards in ([], [empty]):
        made, table, centres = found(tmp_path / "out", shards)
        assert (len(made.sizes), made.largest_percent, table.num_rows, centres.num_rows) == (0, 0.0, 0, 0)
    assert made.without == 3


def test_a_vector_that_is_not_finite_is_no_vector():
    bad = np.array([[1, 0], [np.nan, 1], [np.inf, 0]], np.float32)
    assert table_of(["c", "b", "a"], bad)["image_sha256"].to_pylist() == ["c"]


def test_a_centre_goes_where_no_image_is_nearest_to_it(tmp_path):
    twins = shard(tmp_path, "s", range(2))
    path = tmp_path / "twins"
    parquet.write(table_of([name_of(0), name_of(1)], np.ones((2, 3), np.float32)), path)
    _, _, centres = found(tmp_path / "out", [Embedded(twins.pairs, lambda: path, 2)], clusters=2)
    assert sorted(centres["images"].to_pylist()) == [0, 2]
    assert [row["embedding"] is None for row in centres.to_pylist()] == [
        row["images"] == 0 for row in centres.to_pylist()
    ]


def test_the_sample_is_bounded_and_the_same_whatever_the_shards(crawl, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "MOST_SAMPLED", 60)
    one, other = clusters._sample(crawl), clusters._sample(crawl[::-1])
    assert 30 <= len(one) <= 60
    assert np.array_equal(one, other)
    made, _, _ = found(tmp_path / "out", crawl, clusters=KINDS)
    assert made.sizes.sum() == 6 * 49, "those outside of it are assigned all the same"


def test_pieces_in_which_images_are_assigned_do_not_matter(monkeypatch):
    many, centres = vectors(range(500)), vectors(range(KINDS))
    whole = assign(many, centres)[0]
    monkeypatch.setattr(clusters, "_CELLS", 3 * KINDS)
    assert np.array_equal(assign(many, centres)[0], whole)
    assert np.array_equal(whole, np.arange(500) % KINDS)


def peak(folder: Path, shards) -> int:
    """Most bytes of Python and numpy while clusters are made."""
    tracemalloc.start()
    found(folder, shards, clusters=KINDS)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_memory_follows_one_shard_and_the_sample_and_not_the_crawl(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "MOST_SAMPLED", 400)
    shards = [shard(tmp_path, f"s{at}", range(at * 1_500, (at + 1) * 1_500)) for at in range(8)]
    few, many = peak(tmp_path / "out", shards[:2]), peak(tmp_path / "out", shards)
    assert many < 1.3 * few

    kept, sound = [], clusters._read
    monkeypatch.setattr(clusters, "_read", lambda each: kept.append(sound(each)) or kept[-1])
    assert peak(tmp_path / "out", shards) > 1.3 * few, "the planted bug, vectors that are kept, turns this red"


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(CompalignError, match=r"compalign-dagster\[clusters\]"):
        clusters.fit(np.eye(3, dtype=np.float32), 2)


def test_the_planted_bug_of_centres_as_long_as_they_come_turns_the_recovery_red(crawl, tmp_path, monkeypatch):
    """A large centre would draw every image to it."""
    sound = clusters.fit
    long = partial(lambda sampled, count: sound(sampled, count) * np.linspace(0.01, 9, count)[:, None])
    monkeypatch.setattr(clusters, "fit", long)
    with pytest.raises(AssertionError):
        test_planted_clusters_are_recovered_and_every_sample_with_a_vector_is_in_one(crawl, tmp_path)
