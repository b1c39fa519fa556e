"""Kept pairs are read where they landed: each exactly once an epoch, in an order that is one number, proved."""

import gzip
import hashlib
import io
import itertools
import json
import shutil
import tarfile
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.index import make_pair_id
from compalign_dagster.errors import InputError
from compalign_dagster.selection.pairs import PairChangedError, kept_frames
from compalign_dagster.selection.reading import Order, Reader
from compalign_dagster.selection.tables import KEPT
from compalign_dagster.selection.training import KeptPairs, Loader
from compalign_dagster.selection.version import Version
from compalign_dagster.store import LocalStore, StoreError
from tests.support.small_version import small_store

PLACE = ("pair_id", "shard", "key", "caption_index")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("reading"), batches=3, pairs=20)


@pytest.fixture(scope="module")
def version(small):
    return small.filter(keep_fraction="0.4")


@pytest.fixture(scope="module")
def kept(version):
    return pl.concat(list(kept_frames(version)))


@pytest.fixture
def changed(small, version, tmp_path):
    """The landing folder with one byte of one kept image flipped, and the pairs of that image."""
    landing = tmp_path / "landing"
    shutil.copytree(small.home / "landing", landing)
    row = kept_of(version).row(3, named=True)
    path = landing / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["image_offset"] + row["image_length"] // 2] ^= 1
    path.write_bytes(data)
    same = kept_of(version).filter(pl.col("shard") == row["shard"], pl.col("image_offset") == row["image_offset"])
    return LocalStore(landing), same


def kept_of(version):
    return pl.concat([version.kept(batch) for batch in version.batches()])


def places(samples):
    return Counter(tuple(sample[name] for name in PLACE) for sample in samples)


def consumed(version, landing, world, workers, **order):
    """What every reader of every rank gets, by position; torch is not needed to know who reads what."""
    reader = Reader(version, landing, Order(**order))
    readers = world * workers
    ends = [reader.total * at // readers for at in range(readers + 1)]
    return [list(reader.read(low, high)) for low, high in itertools.pairwise(ends)]


def test_a_sample_is_the_image_that_landed_with_its_caption_and_figures(small, version, kept):
    found = {tuple(sample[name] for name in PLACE): sample for sample in KeptPairs(version, small.landing)}
    assert len(found) == version.facts["kept"] == kept.height
    for row in kept.iter_rows(named=True):
        sample = found[tuple(row[name] for name in PLACE)]
        with tarfile.open(small.home / "landing" / row["shard"]) as tar:
            member = next(item for item in tar if item.name == f"{row['key']}.jpg")
            image = tar.extractfile(member).read()
            captions = json.loads(tar.extractfile(f"{row['key']}.json").read())["captions"]
        assert sample["image"] == image
        assert sample["caption"] == captions[row["caption_index"]] == row["caption"]
        assert sample["reward"] == row["reward"]
        assert sample["corpus"] == row["corpus"]
        assert make_pair_id(hashlib.sha256(image).digest(), sample["caption"].encode()) == sample["pair_id"]


@settings(max_examples=25, deadline=None)
@given(
    world=st.integers(1, 5),
    workers=st.integers(1, 4),
    window=st.sampled_from([1, 3, 16, 1000]),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_each_pair_is_read_exactly_once_over_all_ranks_and_workers(
    small, version, kept, world, workers, window, seed, epoch, shuffle
):
    parts = consumed(version, small.landing, world, workers, window=window, seed=seed, epoch=epoch, shuffle=shuffle)
    assert [item.position for part in parts for item in part] == list(range(kept.height))
    assert places(item.sample for part in parts for item in part) == Counter(kept.select(PLACE).rows())
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


def test_ranks_that_shuffle_by_seeds_of_their_own_would_be_caught(small, version, kept):
    ranks = [consumed(version, small.landing, 2, 1, seed=rank)[rank] for rank in range(2)]
    found = places(item.sample for part in ranks for item in part)
    assert found != Counter(kept.select(PLACE).rows()), "the planted bug: some pairs twice, some never"


def test_the_dataset_gives_each_rank_its_stretch_and_the_ranks_together_all(small, version, kept):
    ranks = [KeptPairs(version, small.landing, rank=rank, world=3, seed=5) for rank in range(3)]
    read = [list(pairs) for pairs in ranks]
    assert places(sample for part in read for sample in part) == Counter(kept.select(PLACE).rows())
    assert all(pairs.pairs == kept.height for pairs in ranks)


def test_an_order_is_a_function_of_seed_and_epoch_and_mixes_batches_shards_and_rows(small, version):
    def order(seed, epoch, window=8):
        return [tuple(item.sample[name] for name in PLACE) for item in
                consumed(version, small.landing, 1, 1, seed=seed, epoch=epoch, window=window)[0]]  # fmt: skip

    first = order(1, 0)
    assert order(1, 0) == first
    assert order(1, 1) != first
    assert order(2, 0) != first
    plain = list(kept_of(version).select(PLACE).rows())
    unshuffled = consumed(version, small.landing, 1, 1, shuffle=False)[0]
    assert [tuple(item.sample[name] for name in PLACE) for item in unshuffled] == plain
    moved = sum(one != other for one, other in zip(first, plain, strict=True))
    assert moved > len(plain) // 2


def test_an_order_does_not_change_with_releases():
    """Who goes on with an older state must meet the same order."""
    rows = Order(seed=3, epoch=2, window=7).of_rows(np.repeat([0, 1, 2], [9, 14, 3]), 4).tolist()
    assert sorted(rows) == list(range(26))
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == "8c125d874e35397f"


@pytest.mark.parametrize("stop", [0, 1, 7, 30])
def test_it_goes_on_at_exactly_the_next_pair(small, version, stop):
    whole = list(KeptPairs(version, small.landing, seed=9, window=16))
    first = KeptPairs(version, small.landing, seed=9, window=16)
    iteration = iter(first)
    seen = [next(iteration) for _ in range(stop)]
    state = json.loads(json.dumps(first.state_dict()))
    iteration.close()
    second = KeptPairs(version, small.landing, seed=9, window=16)
    second.load_state_dict(state)
    assert seen + list(second) == whole
    assert list(second) == whole, "the iteration after it is a whole one"


def test_a_state_taken_one_pair_too_late_would_be_caught(small, version):
    pairs = KeptPairs(version, small.landing)
    iteration = iter(pairs)
    seen = [next(iteration)]
    state = pairs.state_dict()
    state["next"] = {worker: place + 1 for worker, place in state["next"].items()}
    pairs.load_state_dict(state)
    assert seen + list(pairs) != list(KeptPairs(version, small.landing)), "the planted bug loses a pair"


def test_epochs_have_orders_of_their_own_and_a_state_knows_its_epoch(small, version, kept):
    pairs = KeptPairs(version, small.landing)
    first = list(pairs)
    pairs.set_epoch(1)
    second = list(pairs)
    assert [sample["key"] for sample in first] != [sample["key"] for sample in second]
    assert places(first) == places(second) == Counter(kept.select(PLACE).rows())
    iteration = iter(pairs)
    head = [next(iteration) for _ in range(4)]
    other = KeptPairs(version, small.landing)
    other.load_state_dict(pairs.state_dict())
    assert other.epoch == 1
    other.set_epoch(1)
    assert head + list(other) == second


@pytest.mark.parametrize("other", [{"seed": 2}, {"window": 5}, {"shuffle": False}, {"rank": 1, "world": 2}])
def test_the_state_of_another_order_or_rank_is_refused_by_name(small, version, other):
    state = KeptPairs(version, small.landing, seed=1).state_dict()
    with pytest.raises(InputError, match=f"{next(iter(other))} of a reader's state"):
        KeptPairs(version, small.landing, **{"seed": 1, **other}).load_state_dict(state)


def test_the_state_of_another_version_is_refused(small, version):
    state = KeptPairs(version, small.landing).state_dict()
    other = small.filter(keep_fraction="0.1", move=False)
    with pytest.raises(InputError, match="dataset of a reader's state"):
        KeptPairs(other, small.landing).load_state_dict(state)


def test_a_pair_whose_bytes_changed_is_an_error_that_names_it(version, changed):
    landing, same = changed
    with pytest.raises(PairChangedError) as refused:
        list(KeptPairs(version, landing))
    assert any(pair_id in str(refused.value) for pair_id in same["pair_id"])
    assert same["shard"][0] in str(refused.value)


def test_pairs_whose_bytes_changed_can_be_skipped_and_are_counted(version, kept, changed):
    landing, same = changed
    pairs = KeptPairs(version, landing, on_changed="skip")
    found = places(pairs)
    assert Counter(kept.select(PLACE).rows()) - found == Counter(same.select(PLACE).rows())
    assert pairs.skipped == same.height
    assert pairs.state_dict()["skipped"] == {"0": same.height}


@pytest.mark.parametrize("damage", ["cut", "gone", "overwritten"])
def test_a_shard_that_is_cut_gone_or_overwritten_costs_its_own_pairs_alone(small, version, kept, tmp_path, damage):
    landing = tmp_path / "landing"
    shutil.copytree(small.home / "landing", landing)
    name = kept["shard"][0]
    path = landing / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:600])
    elif damage == "gone":
        path.unlink()
    else:
        shutil.copyfile(landing / kept["shard"][-1], path)
    left = places(KeptPairs(version, LocalStore(landing), on_changed="skip"))
    assert left == Counter(kept.filter(pl.col("shard") != name).select(PLACE).rows())
    with pytest.raises(PairChangedError, match=name):
        list(KeptPairs(version, LocalStore(landing)))


@pytest.mark.parametrize("purge", ["the index", "a caption"])
def test_a_caption_that_was_purged_is_a_changed_pair_too(small, version, kept, tmp_path, purge):
    home = tmp_path / "store"
    shutil.copytree(small.home / "store", home)
    shard, key = version.shard_keys.select("shard", "pairs_key").row(0)
    if purge == "the index":
        gone = kept.filter(shard=shard)
        (home / key).unlink()
    else:
        gone = kept.filter(shard=shard).head(1)
        index = pl.read_parquet(home / key)
        emptied = pl.when(pl.col("pair_id") == gone["pair_id"][0]).then(pl.lit("")).otherwise("caption")
        index.with_columns(caption=emptied).write_parquet(home / key)
    found = Version.open(Artifact(LocalStore(home), version.artifact.path, version.artifact.manifest))
    left = places(KeptPairs(found, small.landing, on_changed="skip"))
    assert Counter(kept.select(PLACE).rows()) - left == Counter(gone.select(PLACE).rows())
    with pytest.raises(PairChangedError, match="no such pair"):
        list(kept_frames(found))


class Refusing(LocalStore):
    """A store that does not answer."""

    def read_range(self, key, offset, length, *, stamp=None):
        raise StoreError("the store", expected="an answer", found="none", remedy="Wait.")


def test_a_store_that_does_not_answer_is_no_changed_pair(small, version):
    with pytest.raises(StoreError, match="expected an answer"):
        list(KeptPairs(version, Refusing(small.home / "landing"), on_changed="skip"))


class Counting(LocalStore):
    """A store that remembers what was read of it."""

    def __init__(self, root):
        super().__init__(root)
        self.ranges, self.opened = [], 0

    def read_range(self, key, offset, length, *, stamp=None):
        self.ranges.append((key, offset, length))
        return super().read_range(key, offset, length, stamp=stamp)

    def open(self, key, *, stamp=None):
        self.opened += not key.endswith(".tar")
        return super().open(key, stamp=stamp)


def test_only_kept_images_are_read_each_by_its_range(small, version, kept):
    landing = Counting(small.home / "landing")
    list(KeptPairs(version, landing, shuffle=False))
    images = kept.select("shard", "image_offset", "image_length").unique(maintain_order=True).rows()
    assert landing.ranges == images, "nothing else, and an image with two kept captions once"


def test_a_compressed_shard_is_unpacked_once_in_reading_order(tmp_path):
    small = small_store(tmp_path, batches=1, shards=1, pairs=12)
    plain = next((small.home / "landing").rglob("*.tar"))
    packed = plain.with_name("00007.tgz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    small.settle()
    version = small.filter(keep_fraction="1")
    landing = Counting(small.home / "landing")
    read = list(KeptPairs(version, landing, shuffle=False))
    assert len(read) == version.facts["kept"] > 10
    assert landing.opened == 1
    assert not landing.ranges
    list(KeptPairs(version, landing))
    assert landing.opened > 2, "the planted disorder: each step back unpacks it again"


def test_a_stretch_of_an_epoch_loads_only_the_batches_that_it_lies_in(small, version, monkeypatch):
    loaded = []
    kept = Version.kept
    monkeypatch.setattr(
        Version, "kept", lambda self, batch, columns: loaded.append(batch) or kept(self, batch, columns)
    )
    reader = Reader(version, small.landing, Order(seed=4))
    assert len(list(reader.read(2, 5))) == 3
    assert len(loaded) == 1


def test_batches_of_the_loader_are_columns_and_its_state_counts_whole_batches(small, version):
    pairs = KeptPairs(version, small.landing, transform=lambda sample: {name: sample[name] for name in PLACE[2:]})
    loader = Loader(pairs, 4)
    batches = iter(loader)
    first = next(batches)
    assert len(first["key"]) == 4
    assert first["caption_index"].shape == (4,)
    assert loader.state_dict()["next"] == {"0": 4}
    rest = [key for batch in batches for key in batch["key"]]
    assert first["key"] + rest == [sample["key"] for sample in KeptPairs(version, small.landing)]


def test_it_is_opened_by_name_from_urls(small, version):
    pairs = KeptPairs.open(str(small.home / "store"), str(small.home / "landing"), version.artifact.work_key[:8])
    assert pairs.pairs == version.facts["kept"]
    assert io.BytesIO(next(iter(pairs))["image"]).read(2) == b"\xff\xd8"


def test_kept_tables_have_the_declared_columns_in_reading_order(version, kept):
    assert kept.columns == KEPT.names
    assert kept.select(PLACE).rows() == kept_of(version).select(PLACE).rows()
