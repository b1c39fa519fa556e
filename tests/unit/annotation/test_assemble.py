import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compalign_dagster.annotation import tables
from compalign_dagster.annotation.assemble import (
    CODE_VERSION,
    Annotations,
    assemble,
    check,
    comparisons_of,
    problems_in,
    split_of,
)
from compalign_dagster.annotation.read import Line, Rejection
from compalign_dagster.annotation.schema import JudgedImage
from compalign_dagster.crawl.shards import Shard, find_shards
from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.versions import digest_bytes, digest_json
from tests.support.shard_builder import picture, sample, tar
from tests.unit.annotation.lines import judgement, line


@pytest.fixture
def shards(tmp_path) -> list[Shard]:
    """judged/00000.tar has images 0 and 1 and a broken one; judged/00001.tar has 1 again, and 2, 3."""
    put(
        tmp_path / "judged/00000.tar",
        [*sample("k0", seed=0), *sample("k1", seed=1), ("broken.jpg", b"no image")],
    )
    put(
        tmp_path / "judged/00001.tar",
        [*sample("k0", seed=2), *sample("again", seed=1), *sample("k3", seed=3)],
    )
    return find_shards([str(tmp_path)])


def put(path: Path, entries: list) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tar(entries))


def image_id(seed: int) -> str:
    return digest_bytes(picture(seed))


def read_line(number: int, image: dict, **changes: object) -> Line:
    return Line("f.jsonl", number, JudgedImage.model_validate(line(image=image, **changes)))


def together(shards: list[Shard], *lines: Line, rejected: tuple[Rejection, ...] = ()) -> Annotations:
    return assemble(lines, rejected, shards, seed=7)


FIRST = {"shard": "judged/00000.tar", "key": "k0"}


@pytest.mark.parametrize(
    ("image", "seed"),
    [
        ({"sha256": image_id(3)}, 3),
        ({"sha256": image_id(3), "shard": "elsewhere.tar", "key": "renamed"}, 3),
        ({"shard": "judged/00001.tar", "key": "k0"}, 2),
        (FIRST, 0),
        ({"key": "k3"}, 3),
        ({"shard": "judged/00001.tar", "key": "again"}, 1),
    ],
)
def test_an_image_is_found_by_digest_else_by_shard_and_key_else_by_key(shards, image, seed):
    found = together(shards, read_line(1, image)).images.to_pylist()
    assert [row["image_id"] for row in found] == [image_id(seed)]
    shard = next(item for item in shards if item.name == found[0]["shard"])
    data = shard.store.read_range(shard.key, found[0]["image_offset"], found[0]["image_length"])
    assert data == picture(seed)


@pytest.mark.parametrize(
    ("image", "reason", "told"),
    [
        ({"sha256": "0" * 64}, "image_not_found", "0" * 64),
        ({"key": "nowhere"}, "image_not_found", "'nowhere'"),
        ({"shard": "judged/00000.tar", "key": "k3"}, "image_not_found", "judged/00000.tar k3"),
        ({"shard": "judged/00000.tar", "key": "broken"}, "image_not_found", "image_undecodable"),
        ({"key": "k0"}, "image_ambiguous", "judged/00001.tar"),
        ({**FIRST, "sha256": "0" * 64}, "image_changed", image_id(0)),
    ],
)
def test_a_line_whose_image_cannot_be_found_is_rejected_with_what_was_looked_for(shards, image, reason, told):
    annotations = together(shards, read_line(1, FIRST), read_line(2, image))
    (row,) = annotations.rejected.to_pylist()
    assert (row["file"], row["line"], row["reason"]) == ("f.jsonl", 2, reason)
    assert told in row["detail"]
    assert (annotations.lines, annotations.used) == (2, 1)


def test_lines_of_one_image_are_merged_even_when_they_name_different_copies(shards):
    annotations = together(
        shards,
        read_line(1, {"shard": "judged/00001.tar", "key": "again"}),
        read_line(2, {"shard": "judged/00000.tar", "key": "k1"}, judgements=[judgement("l-2")]),
    )
    assert [(row["shard"], row["key"]) for row in annotations.images.to_pylist()] == [("judged/00000.tar", "k1")]
    assert annotations.captions.num_rows == 3
    assert sorted(set(annotations.ranks["labeler"].to_pylist())) == ["l-1", "l-2"]


def test_a_labeler_who_judges_an_image_again_costs_the_later_line(shards):
    annotations = together(shards, read_line(1, FIRST), read_line(2, {"sha256": image_id(0)}))
    assert [row["reason"] for row in annotations.rejected.to_pylist()] == ["labeler_repeats"]
    assert "f.jsonl:1" in annotations.rejected["detail"][0].as_py()
    assert annotations.comparisons.num_rows == 3


def test_a_caption_id_with_other_words_costs_the_later_line_and_none_of_it_is_used(shards):
    captions = [
        {"id": "d", "text": "new", "source": "human"},
        {"id": "a", "text": "other words", "source": "human"},
    ]
    judgements = [judgement("l-2", ranking=[["a"], ["d"]])]
    annotations = together(shards, read_line(1, FIRST), read_line(2, FIRST, captions=captions, judgements=judgements))
    assert [row["reason"] for row in annotations.rejected.to_pylist()] == ["caption_differs"]
    assert annotations.captions["caption_id"].to_pylist() == ["a", "b", "c"]
    assert set(annotations.ranks["labeler"].to_pylist()) == {"l-1"}


def test_the_tables_say_what_the_line_said(shards):
    ratings = {"a": {"accuracy": 5, "completeness": 4.5}, "d": {"context": 2}}
    captions = [*line()["captions"], {"id": "d", "text": "unranked", "source": "human"}]
    judged = judgement(ratings=ratings, seconds=12.5, guideline="2")
    annotations = together(shards, read_line(1, FIRST, captions=captions, judgements=[judged]))
    rows = {row["caption_id"]: row for row in annotations.ranks.to_pylist()}
    assert {name: row["rank"] for name, row in rows.items()} == {"a": 1, "b": 2, "c": 2, "d": None}
    assert (rows["a"]["accuracy"], rows["a"]["completeness"], rows["a"]["vividness"]) == (5, 4.5, None)
    assert (rows["d"]["context"], rows["d"]["seconds"], rows["d"]["guideline"]) == (2, 12.5, "2")
    assert annotations.captions["captioner"].to_pylist() == [None, None, "captioner", None]
    compared = {(row["better"], row["worse"], row["tie"]) for row in annotations.comparisons.to_pylist()}
    assert compared == {("a", "b", False), ("a", "c", False), ("b", "c", True)}
    for name in ("images", "captions", "ranks", "comparisons", "rejected"):
        assert getattr(annotations, name).schema.equals(getattr(tables, name.upper()))


@given(st.permutations("abcdef"), st.lists(st.booleans(), min_size=5, max_size=5))
def test_every_two_ranked_captions_are_compared_exactly_once(order, cuts):
    ranking = [[order[0]]]
    for caption, cut in zip(order[1:], cuts, strict=True):
        if cut:
            ranking.append([caption])
        else:
            ranking[-1].append(caption)
    found = comparisons_of(ranking)
    assert len({frozenset((better, worse)) for better, worse, _ in found}) == len(found) == 15
    place = {caption: at for at, group in enumerate(ranking) for caption in group}
    for better, worse, tie in found:
        assert place[better] <= place[worse]
        assert tie == (place[better] == place[worse])
        assert not tie or better < worse


def test_the_order_of_lines_changes_no_row(shards):
    lines = [
        read_line(1, FIRST),
        read_line(2, {"sha256": image_id(1)}),
        read_line(3, {"key": "k3"}, judgements=[judgement("l-3"), judgement("l-2")]),
        read_line(4, FIRST, judgements=[judgement("l-2", ranking=[["c"], ["a"]])]),
    ]
    first = together(shards, *lines)
    for seed in range(5):
        other = together(shards, *random.Random(seed).sample(lines, len(lines)))
        for name in ("images", "captions", "ranks", "comparisons"):
            assert getattr(first, name).equals(getattr(other, name))


# The smallest PNG there is, as bytes: image libraries write other bytes from release to release.
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


def test_the_tables_change_only_with_the_code_version(tmp_path):
    put(tmp_path / "judged/00000.tar", [("k0.png", DOT), ("k0.txt", b"a red dot")])
    ratings = {"a": {"accuracy": 5}, "c": {"accuracy": 1, "context": 2.5}}
    first = read_line(1, FIRST, judgements=[judgement(ratings=ratings, seconds=3.5)])
    lines = [first, read_line(2, FIRST), read_line(3, FIRST, judgements=[judgement("l-0")])]
    annotations = together(find_shards([str(tmp_path)]), *lines)
    names = ("images", "captions", "ranks", "comparisons", "rejected")
    digest = digest_json([CODE_VERSION, [getattr(annotations, name).to_pylist() for name in names]])
    assert digest == "d091893bf3f3e651ef837dc5f21be50f4d929979e1cb05939729fc3eaa0cef0a", (
        "bump CODE_VERSION in assemble.py, then this digest"
    )


def test_splits_are_80_10_10_by_image_and_seed():
    ids = [digest_bytes(str(number).encode()) for number in range(4000)]
    splits = [split_of(item, 7) for item in ids]
    shares = {name: splits.count(name) / len(ids) for name in tables.SPLITS}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.02)
    assert splits == [split_of(item, 7) for item in ids]
    assert splits != [split_of(item, 8) for item in ids]


def test_nothing_usable_is_an_error_that_shows_the_first_reason(shards):
    refused = Rejection("f.jsonl", 4, "not_json", "expected value")
    with pytest.raises(InputError, match=r"f\.jsonl:4: not_json"):
        together(shards, rejected=(refused,))
    with pytest.raises(InputError, match="no line at all"):
        together(shards)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["k0", "k1", "k3", "x"]), st.sampled_from("12")), max_size=8),
    st.integers(0, 3),
)
def test_lines_read_are_used_or_rejected_whatever_they_say(tmp_path_factory, named, already):
    folder = tmp_path_factory.mktemp("shards")
    put(folder / "judged/00000.tar", [entry for seed in (0, 1, 3) for entry in sample(f"k{seed}", seed=seed)])
    lines = [read_line(1, FIRST, judgements=[judgement("l-0")])]
    lines += [
        read_line(number, {"key": key}, judgements=[judgement(f"l-{labeler}")])
        for number, (key, labeler) in enumerate(named, start=2)
    ]
    rejected = tuple(Rejection("f.jsonl", 100 + number, "not_json", "") for number in range(already))
    annotations = together(find_shards([str(folder)]), *lines, rejected=rejected)
    usable = {pair for pair in named if pair[0] != "x"}
    assert annotations.lines == len(lines) + already
    assert annotations.used == 1 + len(usable)
    assert problems_in(annotations) == []


def test_problems_are_found_and_raised(shards):
    good = together(shards, read_line(1, FIRST), read_line(2, {"key": "k3"}))
    assert problems_in(good) == []
    check(good)
    broken = {
        "2 lines read, but 1 used and 0 rejected": replace(good, used=1),
        "more than once, so could be in two splits": replace(
            good,
            images=tables.IMAGES.empty_table().from_batches([*good.images.to_batches(), *good.images.to_batches()]),
        ),
        "captions are of an image that is not listed": replace(good, images=good.images.slice(0, 1)),
        "judged captions are not listed": replace(good, captions=good.captions.slice(1)),
    }
    for told, annotations in broken.items():
        with pytest.raises(ConservationError, match=told):
            check(annotations)
