"""`compalign replay-quarantine`: only what a fix may help is read again, and the result is a whole index."""

import json
from pathlib import Path

import pytest

from compalign_dagster import parquet
from compalign_dagster.cli.main import run
from tests.support import shard_builder as build

TABLES = ("pairs.parquet", "quarantine.parquet")


@pytest.fixture
def crawl(tmp_path):
    """Three shards: a sound one, one with a picture above a small budget, one with an empty caption."""
    large = [("big.png", build.picture(5, (200, 150), "PNG")), ("big.txt", b"a large one")]
    build.place(tmp_path, build.good_shard(3), "crawl/a/0.tar")
    build.place(tmp_path, build.tar([*build.samples(2), *large]), "crawl/a/1.tar.gz".removesuffix(".gz"))
    build.place(tmp_path, build.empty_caption(), "crawl/b/0.tar")
    return tmp_path / "crawl"


def index(crawl: Path, out: str, *more: str) -> Path:
    assert run(["index", "--shards", str(crawl), "--out", str(crawl.parent / out), *more]) == 0
    return crawl.parent / out


def replay(crawl: Path, before: Path, out: str, *more: str) -> int:
    return run(["replay-quarantine", "--index", str(before), "--shards", str(crawl),
                "--out", str(crawl.parent / out), *more])  # fmt: skip


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def tables(folder: Path) -> list:
    return [parquet.read(folder / name) for name in TABLES]


def test_a_larger_budget_recovers_what_it_refused_and_the_index_is_as_if_made_with_it(crawl, capsys):
    before = index(crawl, "before", "--image-pixels", "5000")
    assert replay(crawl, before, "after", "--image-pixels", "50000") == 0
    after = crawl.parent / "after"
    assert "image_too_large: 1 recovered, 0 remain" in capsys.readouterr().out
    assert summary(after)["shards_read_again"] == ["a/1.tar"]
    assert summary(after)["replayed"] == {
        "image_too_large": {"recovered": 1, "remaining": 0},
        "image_unusable": {"recovered": 1, "remaining": 0},
    }
    assert tables(after) == tables(index(crawl, "whole", "--image-pixels", "50000"))
    assert {key: value for key, value in summary(after).items() if key not in ("replayed", "shards_read_again")} == (
        summary(crawl.parent / "whole")
    )


@pytest.mark.parametrize(
    "said", ['{"shards": [{}], "budgets": {}}', "[]", '{"shards": [], "budgets": {"members": "x"}}']
)
def test_a_summary_that_is_none_is_refused_by_name(said, crawl, capsys):
    before = index(crawl, "before")
    (before / "summary.json").write_text(said)
    assert replay(crawl, before, "after") == 2
    assert "no usable summary.json" in capsys.readouterr().err


def test_shards_without_such_a_refusal_are_not_read(crawl):
    before = index(crawl, "before", "--image-pixels", "5000")
    for name in ("a/0.tar", "b/0.tar"):
        path = crawl / name
        path.write_bytes(b"\xff" * path.stat().st_size)  # reading it would show
    assert replay(crawl, before, "after", "--image-pixels", "50000") == 0
    assert summary(crawl.parent / "after")["shards_by_status"] == {"ok": 3}
    path = crawl / "a/1.tar"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert replay(crawl, before, "again", "--image-pixels", "50000") == 0
    assert summary(crawl.parent / "again")["shards_by_status"] == {"ok": 2, "unreadable": 1}, "the planted read"


def test_without_options_the_budgets_are_those_of_the_index(crawl):
    before = index(crawl, "before", "--image-pixels", "5000")
    assert replay(crawl, before, "after") == 0
    assert tables(crawl.parent / "after") == tables(before)
    assert summary(crawl.parent / "after")["replayed"]["image_too_large"] == {"recovered": 0, "remaining": 1}


def test_a_reason_chooses_what_is_retried(crawl):
    before = index(crawl, "before", "--image-pixels", "5000")
    assert replay(crawl, before, "after", "--reason", "caption_empty", "--image-pixels", "50000") == 0
    assert summary(crawl.parent / "after")["shards_read_again"] == ["b/0.tar"]
    with pytest.raises(SystemExit, match="1"):
        replay(crawl, before, "after", "--strict", "--reason", "caption_empty")


def test_a_shard_delivered_again_with_another_size_is_read_too(crawl):
    before = index(crawl, "before", "--image-pixels", "5000")
    build.place(crawl, build.good_shard(9), "a/0.tar")
    assert replay(crawl, before, "after", "--image-pixels", "50000") == 0
    assert summary(crawl.parent / "after")["shards_read_again"] == ["a/0.tar", "a/1.tar"]
    assert tables(crawl.parent / "after") == tables(index(crawl, "whole"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--reason", "bad_luck"), "a reason code"),
        (("--index", "nowhere"), "compalign index"),
    ],
)
def test_wrong_use_is_one_line(arguments, said, crawl, capsys):
    before = index(crawl, "before")
    assert replay(crawl, before, "after", *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_shard_that_is_needed_and_gone_is_named(crawl, capsys):
    before = index(crawl, "before", "--image-pixels", "5000")
    (crawl / "a/1.tar").unlink()
    assert replay(crawl, before, "after") == 2
    assert "shard a/1.tar" in capsys.readouterr().err


def test_an_index_of_other_columns_is_refused(crawl, capsys):
    before = index(crawl, "before", "--image-pixels", "5000")
    old = parquet.read(before / "pairs.parquet").drop_columns(["image_phash"])
    parquet.write(old, before / "pairs.parquet")
    assert replay(crawl, before, "after") == 2
    assert "image_phash" in capsys.readouterr().err
