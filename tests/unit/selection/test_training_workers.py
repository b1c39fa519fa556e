"""Worker processes share an epoch without a pair read twice, and a run goes on where it was stopped."""

import json
import shutil
from collections import Counter
from operator import itemgetter

import polars as pl
import pytest
from torch.utils.data import DataLoader

from compalign_dagster.errors import InputError
from compalign_dagster.selection.pairs import PairChangedError, kept_frames
from compalign_dagster.selection.training import KeptPairs, Loader
from compalign_dagster.store import LocalStore
from tests.support.small_version import small_store

pytestmark = [pytest.mark.slow]

PLACE = ("pair_id", "shard", "key", "caption_index")
place = itemgetter(*PLACE)  # not a function of this module, which workers would import with all that it imports


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("workers"), pairs=12)


@pytest.fixture(scope="module")
def version(small):
    return small.filter(keep_fraction="0.5")


def loader(version, landing, workers=2, **options):
    pairs = KeptPairs(version, landing, seed=3, window=16, transform=place, **options)
    return Loader(pairs, 4, workers=workers, collate=list)


@pytest.fixture(scope="module")
def whole(small, version):
    """The batches of an epoch without a stop."""
    return list(loader(version, small.landing))


@pytest.fixture(scope="module")
def stopped(small, version):
    """The first five batches of an epoch, and the state after them."""
    first = loader(version, small.landing)
    batches = iter(first)
    seen = [next(batches) for _ in range(5)]
    batches.close()
    return seen, json.loads(json.dumps(first.state_dict()))


def test_each_pair_comes_exactly_once_from_two_workers(version, whole):
    kept = pl.concat(list(kept_frames(version))).select(PLACE).rows()
    assert Counter(pair for batch in whole for pair in batch) == Counter(kept)


def test_with_workers_it_goes_on_with_exactly_the_next_batch(small, version, whole, stopped):
    seen, state = stopped
    second = loader(version, small.landing)
    second.load_state_dict(state)
    assert seen + list(second) == whole


def test_a_state_that_counts_what_workers_read_ahead_would_be_caught(small, version, whole, stopped):
    seen, state = stopped
    ahead = {worker: position + 4 for worker, position in state["next"].items()}  # the planted bug: a batch each
    second = loader(version, small.landing)
    second.load_state_dict({**state, "next": ahead})
    assert seen + list(second) != whole


def test_the_state_of_two_workers_is_refused_by_another_number_of_them(small, version, stopped):
    one = loader(version, small.landing, workers=0)
    one.load_state_dict(stopped[1])
    with pytest.raises(InputError, match="workers of a reader's state: expected 1, found 2"):
        list(one)


@pytest.fixture
def without_a_shard(version, small, tmp_path):
    """The landing folder without one shard, and that shard's name."""
    shutil.copytree(small.home / "landing", tmp_path / "landing")
    name = sorted(version.shards["shard"])[0]
    (tmp_path / "landing" / name).unlink()
    return LocalStore(tmp_path / "landing"), name


def test_a_changed_pair_is_named_across_the_process(version, without_a_shard):
    landing, name = without_a_shard
    with pytest.raises(PairChangedError, match=name):
        list(loader(version, landing))


def test_skipped_pairs_are_counted_across_the_process(version, without_a_shard):
    landing, name = without_a_shard
    pairs = KeptPairs(version, landing, seed=3, on_changed="skip", transform=place)
    read = [pair for batch in Loader(pairs, 4, workers=2, collate=list) for pair in batch]
    gone = pl.concat(list(kept_frames(version))).filter(shard=name).height
    assert len(read) == version.facts["kept"] - gone
    assert pairs.skipped == gone > 0


def test_a_forked_worker_is_refused_before_it_hangs(small, version):
    pairs = KeptPairs(version, small.landing, transform=place)
    forked = DataLoader(pairs, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    with pytest.raises(RuntimeError, match="multiprocessing_context='spawn'"):
        list(forked)
