"""Where the cut falls among ranked lists, also where ties do not fit into memory."""

from contextlib import closing

import numpy as np
import polars as pl
import pytest

from compalign_dagster import artifacts, parquet
from compalign_dagster.selection import cut
from compalign_dagster.selection.cut import Rows, Segment, find_cut
from compalign_dagster.selection.policy import Rules
from compalign_dagster.selection.ranked import as_table, build
from compalign_dagster.selection.tables import RANKED
from compalign_dagster.store import LocalStore
from tests.unit.selection.test_ranked import index, scores


@pytest.fixture
def lists(tmp_path):
    """Makes published lists of these rewards, in row groups of 7, as segments."""

    def make(*of: list[float], capped: dict[int, list[int]] | None = None) -> tuple[list[Segment], pl.DataFrame]:
        store, segments, frames = LocalStore(tmp_path), [], []
        for at, rewards in enumerate(of):
            given = scores(reward=rewards, shard=[f"web/{at}.tar"] * len(rewards))
            made = build(given, index(given), Rules())
            path = parquet.write(as_table(made.ranked, RANKED), tmp_path / "t.parquet", row_group_rows=7)
            artifact = artifacts.publish(
                store, "ranked_pairs", f"{at}", {"ranked.parquet": path}, code_version=1, inputs=[], config={}, facts={}
            )
            bins = made.histogram.sort("bin", descending=True)
            away = np.array((capped or {}).get(at, []), np.int64)
            segments.append(
                Segment(artifact, 0, made.ranked.height, bins["bin"].to_numpy(), bins["pairs"].to_numpy(), away)
            )
            frames.append(
                made.ranked.with_row_index("row").filter(pl.col("row").is_in(away.tolist()).not_()).with_columns(at=at)
            )
        best = ["reward", "pair_id", "shard", "key", "caption_index"]
        return segments, pl.concat(frames).sort(best, descending=[True, *[False] * 4])

    return make


def kept_of(segments, found, ranked):
    return [
        key
        for at, (segment, taken) in enumerate(zip(segments, found.taken, strict=True))
        for row, key in ranked.filter(at=at).select("row", "key").iter_rows()
        if row < taken and row not in segment.capped
    ]


@pytest.mark.parametrize("limit", [1_000_000, 5, 1])
@pytest.mark.parametrize("k", [0, 1, 7, 50, 99, 150, 151])
def test_the_best_k_are_taken_however_little_fits_into_memory(lists, k, limit):
    generator = np.random.default_rng(k)
    segments, ranked = lists(*(generator.integers(0, 4, size=50).astype(float) for _ in range(3)))
    found = find_cut(segments, k, in_memory_rows=limit)
    wanted = ranked.head(k)
    assert found.kept == min(k, 150)
    assert sorted(kept_of(segments, found, ranked)) == sorted(wanted["key"])
    left = ranked.slice(k)["reward"]
    assert found.first_dropped == (left[0] if len(left) else None)
    assert found.tied == (int((left == wanted["reward"][-1]).sum()) if k else 0)


@pytest.mark.parametrize("limit", [1_000_000, 2])
def test_one_reward_for_all_is_cut_by_the_tie_break(lists, limit):
    segments, ranked = lists([1.0] * 40, [1.0] * 30)
    found = find_cut(segments, 33, in_memory_rows=limit)
    assert sorted(kept_of(segments, found, ranked)) == sorted(ranked.head(33)["key"])
    assert (found.tied, found.first_dropped) == (37, 1.0)


@pytest.mark.parametrize("limit", [1_000_000, 3])
@pytest.mark.parametrize("k", [1, 5, 20, 34, 40])
def test_capped_rows_are_passed_over_and_count_as_taken(lists, k, limit):
    generator = np.random.default_rng(k)
    capped = {0: [0, 1, 5, 19], 1: [3, 17]}
    segments, ranked = lists(*(generator.integers(0, 6, size=20).astype(float) for _ in range(2)), capped=capped)
    found = find_cut(segments, k, in_memory_rows=limit)
    assert found.kept == min(k, 34)
    assert sorted(kept_of(segments, found, ranked)) == sorted(ranked.head(k)["key"])
    assert found == find_cut(segments, k)


def test_a_list_whose_rows_around_the_cut_are_left_out_turns_this_red(lists, monkeypatch):
    segments, ranked = lists([1.0] * 40, [1.0] * 30)
    sound = cut._ranges

    def planted(segments, kept):
        ranges, need = sound(segments, kept)
        return [ranges[0], [ranges[1][0]] * 2], need

    monkeypatch.setattr(cut, "_ranges", planted)
    found = find_cut(segments, 33)
    assert sorted(kept_of(segments, found, ranked)) != sorted(ranked.head(33)["key"])


def test_only_the_row_groups_that_are_asked_for_are_read(lists, monkeypatch):
    segments, ranked = lists([float(at) for at in range(50)])
    read = []
    rows = Rows(segments[0].artifact, ["key"])
    whole = rows._file.read_row_groups
    monkeypatch.setattr(
        rows._file, "read_row_groups", lambda groups, **of: (read.extend(groups), whole(groups, **of))[1]
    )
    assert rows.slice(13, 15)["key"].to_list() == ranked["key"][13:15].to_list()
    assert rows.slice(0, 0).height == 0
    assert rows.slice(49, 60)["row"].to_list() == [49]
    assert read == [1, 2, 7]
    rows.close()


def test_rows_at_places_are_those_rows_across_row_groups(lists):
    (segment,), _ = lists(np.random.default_rng(1).normal(size=40).tolist())
    with closing(Rows(segment.artifact, ["pair_id", "reward"])) as rows:
        whole = rows.slice(0, 40)
        for places in ([], [0], [6, 7], [0, 6, 13, 14, 20, 39], list(range(40))):
            assert rows.at(np.array(places, np.int64)).equals(whole[places])
