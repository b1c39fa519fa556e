"""A batch's ranked list: its order, its reasons, and the counts beside it."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.selection import reasons
from compalign_dagster.selection.counts import bins, group_of
from compalign_dagster.selection.policy import Policy, Rules
from compalign_dagster.selection.ranked import build

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def scores(**columns) -> pl.DataFrame:
    n = len(columns["reward"])
    given = {
        "pair_id": [f"{at:032x}" for at in range(n)],
        "shard": ["web/0.tar"] * n,
        "key": [f"{at:03d}" for at in range(n)],
        "caption_index": pl.Series([0] * n, dtype=pl.Int32),
        "corpus": ["web"] * n,
        "human_fit": pl.Series([0.5] * n, dtype=pl.Float32),
    }
    return pl.DataFrame({**given, **columns}, schema_overrides={"reward": pl.Float64})


def index(of: pl.DataFrame, **columns) -> pl.DataFrame:
    n = of.height
    known = {
        "image_offset": [512 * at for at in range(n)],
        "image_length": [100] * n,
        "caption_characters": [20] * n,
        "width": [640] * n,
        "height": [480] * n,
        "url": [None] * n,
        "caption": ["a dog"] * n,
    }
    return of.select("pair_id", "shard", "key", "caption_index").with_columns(
        **{
            name: pl.Series(values, dtype=None if name != "url" else pl.String)
            for name, values in (known | columns).items()
        }
    )


def reasons_of(found: pl.DataFrame) -> dict[str, str | None]:
    return dict(found.select("key", "reason").iter_rows())


def test_candidates_stand_before_refused_pairs_best_first_and_by_corpus():
    given = scores(reward=[0.1, 0.9, -5.0, 0.9, 0.3], corpus=["b", "a", "a", "a", "b"])
    made = build(given, index(given), Rules(reward_floor=-1.0))
    assert made.ranked["key"].to_list() == ["001", "003", "002", "004", "000"]
    assert made.facts["segments"] == [
        {"corpus": "a", "start": 0, "rows": 3, "eligible": 2},
        {"corpus": "b", "start": 3, "rows": 2, "eligible": 2},
    ]


def test_a_pair_has_the_first_reason_that_applies():
    given = scores(
        reward=[1.0, 1.0, 1.0, -9.0, -9.0, None, 1.0],
        human_fit=[0.0, 0.0, 0.0, 0.0, 0.9, None, 0.9],
    )
    blocked = given.head(1).select("shard", "key", "caption_index", reason=pl.lit(reasons.TAKEDOWN))
    languages = given.select(
        "pair_id", "shard", "key", "caption_index", language=pl.Series(["de", "de", "en", "en", "en", "en", None])
    )
    captions = ["spam", "spam", "SPAM!", "x", "x", "x", "x"]
    rules = Rules(reward_floor=0, floors={"human_fit": 0.5}, languages=("en",), caption_patterns=("spam",))
    made = build(given, index(given, caption=captions), rules, blocked=blocked, languages=languages)
    assert reasons_of(made.ranked) == {
        "000": "takedown",
        "001": "language",
        "002": "caption_pattern",
        "003": "floor",
        "004": "reward_floor",
        "005": "cascade_reject",
        "006": None,
    }
    assert sum(made.facts["reasons"].values()) + made.facts["eligible"] == 7


def test_captions_without_a_language_are_dropped_when_the_policy_says_so():
    given = scores(reward=[1.0])
    unknown = given.select("pair_id", "shard", "key", "caption_index", language=pl.lit(None, pl.String))
    kept = build(given, index(given), Rules(languages=("en",)), languages=unknown)
    dropped = build(given, index(given), Rules(languages=("en",), unknown_language="drop"), languages=unknown)
    assert kept.ranked["reason"].to_list() == [None]
    assert dropped.ranked["reason"].to_list() == ["language"]


def test_signals_that_do_not_know_a_pair_are_refused_with_the_remedy():
    given = scores(reward=[1.0, 2.0])
    known = given.select("pair_id", "shard", "key", "caption_index", language=pl.lit("en"))
    with pytest.raises(InputError, match="caption_signals"):
        build(given, index(given), Rules(languages=("en",)), languages=known.head(1))
    with pytest.raises(pl.exceptions.PolarsError, match="m:1"):
        build(given, index(given), Rules(languages=("en",)), languages=pl.concat([known, known]))


def test_a_missing_figure_does_not_reach_a_floor():
    given = scores(reward=[1.0, 1.0, 1.0], human_fit=pl.Series([None, float("nan"), 0.5], dtype=pl.Float32))
    made = build(given, index(given), Rules(floors={"human_fit": 0.5}))
    assert reasons_of(made.ranked) == {"000": "floor", "001": "floor", "002": None}


def test_a_pair_that_is_neither_scored_nor_quarantined_is_an_error():
    given = scores(reward=[1.0, 2.0])
    with pytest.raises(ConservationError, match="2 pairs"):
        build(given.head(1), index(given), Rules())
    assert build(given.head(1), index(given), Rules(), quarantined=1).facts["pairs"] == 2


def test_a_scored_pair_that_the_index_does_not_hold_is_named():
    given = scores(reward=[1.0, 2.0])
    other = index(given).with_columns(key=pl.Series(["000", "else"]))
    with pytest.raises(InputError, match="0" * 31 + "1"):
        build(given, other, Rules())


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://Images.Example.ORG/a.jpg", "images.example.org"),
        ("http://user:secret@example.org:8080/a?b#c", "example.org"),
        ("https://example.org?x", "example.org"),
        ("https://ex%61mple.org/a", "example.org"),
        ("https://example.org./a", "example.org"),
        ("https://ｅxample。org/a", "example.org"),
        ("http:\\\\example.org\\a", "example.org"),
        (" ht\ttp:/\t/exa\nmple.org /a", "example.org "),
        ("//example.org/a", None),
        ("not a url", None),
        ("", None),
        (None, None),
    ],
)
def test_the_domain_is_the_host_of_the_url(url, domain):
    given = scores(reward=[1.0])
    assert build(given, index(given, url=[url]), Rules()).ranked["domain"].to_list() == [domain]


def test_the_counts_beside_a_list_are_those_of_its_candidates():
    rewards = np.random.default_rng(3).normal(size=200).round(1)
    given = scores(reward=rewards, corpus=["a", "b"] * 100)
    made = build(given, index(given, width=[100, 3000] * 100), Rules(reward_floor=-1.0))
    candidates = made.ranked.filter(pl.col("reason").is_null())
    assert made.histogram["pairs"].sum() == candidates.height
    assert made.histogram["sum_reward"].sum() == pytest.approx(candidates["reward"].cast(pl.Float64).sum())
    for dimension in ("domain", "caption_length", "resolution"):
        counted = made.groups.filter(dimension=dimension)
        found = candidates.group_by("corpus", group_of(dimension).alias("group")).len().sort("corpus", "group")
        assert (
            counted.group_by("corpus", "group").agg(pl.col("pairs").sum()).sort("corpus", "group").rows()
            == found.rows()
        )
    assert set(made.groups.filter(dimension="resolution")["group"]) == {"0000-0127", "0256-0511"}
    places = dict(made.ids.iter_rows())
    assert all(places[pair] == row for row, pair in enumerate(made.ranked["pair_id"]))


@given(st.lists(FINITE, min_size=2, max_size=50))
def test_bins_follow_the_order_of_rewards(values):
    rewards = np.sort(np.array(values, np.float32))
    assert (np.diff(bins(rewards).astype(np.int64)) >= 0).all()
    assert bins(np.float32([-0.0, 0.0]))[0] == bins(np.float32([0.0]))[0]


def test_order_and_batching_of_the_input_do_not_matter():
    rewards = np.random.default_rng(5).normal(size=100).round(1)
    given = scores(reward=rewards)
    pairs = index(given)
    one = build(given, pairs, Rules())
    other = build(given.sample(fraction=1, shuffle=True, seed=1), pairs.reverse(), Rules())
    for name in ("ranked", "histogram", "groups", "ids"):
        assert getattr(one, name).equals(getattr(other, name)), name


def test_rules_are_the_part_of_a_policy_that_looks_at_one_pair():
    one = Policy(keep_fraction="0.1", most_per_domain=3, languages=("fr", "en"), floors={"human_fit": 0.2})
    other = Policy(keep_count=9, languages=("en", "fr", "en"), floors={"human_fit": 0.2})
    assert one.rules() == other.rules()
