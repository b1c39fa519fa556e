import json

import numpy as np
import polars as pl
import pytest
import torch

from compalign_dagster.errors import InputError
from compalign_dagster.evaluation.downstream import (
    DownstreamConfig,
    Pairs,
    compare,
    drawn_rows,
    make_arms,
    schedule,
)
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.select import choose
from tests.unit.selection.builders import frame, occurrence

TINY = DownstreamConfig(steps=40, batch=16, lr=0.01, seeds=(0, 1), images="frozen")


@pytest.fixture
def decided():
    generator = np.random.default_rng(0)
    rows = [occurrence(at, float(generator.normal()), corpus="ab"[at % 2]) for at in range(90)]
    scores = frame(rows).with_columns(cosine=pl.Series(generator.normal(size=90)))
    return choose(scores, Policy(keep_fraction="0.3", per_corpus={"b": "0.1"}))


def test_filtered_sets_have_equal_size_in_every_budget(decided):
    arms = make_arms(decided, (0, 1, 2))
    assert list(arms) == ["everything", "random", "cosine", "reward"]
    corpora = decided["corpus"].to_numpy()
    for name in ("random", "cosine", "reward"):
        for rows in arms[name]:
            assert len(set(rows.tolist())) == len(rows)
            assert [(corpora[rows] == corpus).sum() for corpus in "ab"] == [14, 5]
    assert set(arms["reward"][0]) == set(np.flatnonzero(decided["kept"].to_numpy()))
    assert len(arms["everything"][0]) == 90


def test_the_random_set_differs_by_seed_and_is_the_same_again(decided):
    one, again = make_arms(decided, (0, 1))["random"], make_arms(decided, (0, 1))["random"]
    assert not np.array_equal(one[0], one[1])
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))


def test_the_cosine_set_is_the_top_by_cosine(decided):
    rows = make_arms(decided, (0,))["cosine"][0]
    for corpus in "ab":
        mine = decided.with_row_index("row").filter(pl.col("corpus") == corpus)
        inside = mine.filter(pl.col("row").is_in(rows.tolist()))["cosine"]
        outside = mine.filter(~pl.col("row").is_in(rows.tolist()))["cosine"]
        assert inside.min() > outside.max()


def test_without_a_cosine_there_is_no_cosine_set(decided):
    assert "cosine" not in make_arms(decided.with_columns(cosine=pl.lit(None, pl.Float32)), (0,))
    assert "cosine" not in make_arms(decided.drop("cosine"), (0,))


def test_every_pair_is_seen_once_before_any_is_seen_twice():
    rows = np.array([3, 5, 8, 9, 12])
    drawn = schedule(rows, DownstreamConfig(steps=4, batch=3), 0).ravel()
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == rows.tolist()


def test_only_pairs_that_are_drawn_need_an_image():
    arms = {"everything": [np.arange(1000)], "reward": [np.arange(10)]}
    config = DownstreamConfig(steps=2, batch=20, seeds=(0,))
    drawn = drawn_rows(arms, config)
    assert len(drawn) <= 2 * 40
    assert set(schedule(arms["everything"][0], config, 0).ravel()) <= set(drawn)


def features(n, generator, noise):
    """Captions that share a code with their image; `noise` of the pairs are another image's."""
    code = generator.normal(size=(n, 8)).astype(np.float32)
    mix = np.random.default_rng(99).normal(size=(8, 12)).astype(np.float32)
    texts = code.copy()
    wrong = np.flatnonzero(generator.random(n) < noise)
    texts[wrong] = code[np.roll(wrong, 1)]
    return Pairs(code @ mix, np.arange(n), [str(at) for at in range(n)], texts)


@pytest.fixture
def noisy():
    generator = np.random.default_rng(1)
    train, test = features(300, generator, 0.0), features(60, generator, 0.0)
    train.texts[100:] = train.texts[100:][::-1]  # the last two hundred captions belong to other images
    arms = {
        "everything": [np.arange(300)] * 2,
        "random": [np.random.default_rng(seed).permutation(300)[:100] for seed in (0, 1)],
        "reward": [np.arange(100)] * 2,
    }
    return train, arms, test


def test_a_cleaner_set_retrieves_better_at_equal_compute(noisy):
    train, arms, test = noisy
    report = compare(train, arms, test, TINY)
    json.dumps(report, allow_nan=False)
    recall = {name: arm["image_to_text"]["r1"]["value"] for name, arm in report["arms"].items()}
    assert recall["reward"] > max(recall["random"], recall["everything"], 0.5)
    assert report["minus"]["random"]["image_to_text"]["r1"]["low"] > 0
    assert "cosine" not in report["minus"]
    assert report["arms"]["random"]["pairs"] == 100


def test_figures_depend_neither_on_the_number_of_cores_nor_on_the_run(noisy):
    train, arms, test = noisy
    cores, reports = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            reports.append(compare(train, arms, test, TINY))
    finally:
        torch.set_num_threads(cores)
    assert reports[0] == reports[1] == reports[2]


def test_pixels_and_words_learn_which_colour_is_meant():
    generator = np.random.default_rng(2)
    colours = {"red": (220, 30, 30), "green": (30, 160, 40), "blue": (30, 60, 220), "white": (240, 240, 240)}
    names = [list(colours)[at] for at in generator.integers(0, 4, 200)]
    images = np.stack([np.full((32, 32, 3), colours[name], np.uint8) for name in names])
    captions = [f"a {name} picture" for name in names]
    train = Pairs(images[:160], np.arange(160), captions[:160])
    test = Pairs(images[160:], np.arange(40), captions[160:])
    config = DownstreamConfig(steps=30, batch=16, lr=0.01, seeds=(0,), image_px=32)
    report = compare(train, {"reward": [np.arange(160)]}, test, config)
    assert report["arms"]["reward"]["image_to_text"]["r1"]["value"] > 0.9  # captions that read the same are right


def test_too_little_to_train_or_test_is_named(noisy):
    train, arms, test = noisy
    with pytest.raises(InputError, match="training set random"):
        compare(train, arms | {"random": [np.arange(1)] * 2}, test, TINY)
    with pytest.raises(InputError, match="evaluation shards"):
        compare(train, arms, Pairs(test.images[:1], np.zeros(1, np.int64), ["0"], test.texts[:1]), TINY)


@pytest.mark.timeout(60)
def test_a_failure_of_one_training_ends_the_comparison_with_its_reason(noisy):
    train, arms, test = noisy
    train.images[5] = np.nan
    with pytest.raises(Exception, match="finite loss"):
        compare(train, arms, test, TINY)
