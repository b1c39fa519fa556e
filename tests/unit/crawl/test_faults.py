"""The fault matrix: every damaged shard, what came out of it, and the page in docs/ that says so."""

import os
from collections import Counter
from pathlib import Path

import pytest

from compalign_dagster.crawl.index import ShardIndex, index_shard
from compalign_dagster.crawl.reasons import MEANINGS
from tests.conftest import ROOT
from tests.support import shard_builder as build
from tests.support.faults import FAULTS

PAGE = ROOT / "docs" / "faults.md"
HEAD = """# Fault matrix

Damaged, hostile and odd shards, and what indexing makes of each. This page is written by
`tests/unit/crawl/test_faults.py`: run it with `UPDATE_DOCS=1` after a change.

Members met are used, quarantined or ignored; captions found are pairs or quarantined; nothing is lost in
between. A shard's status is `ok` (read whole), `partial` (damaged or cut; what could be read was) or
`unreadable`. A compressed shard is called `.tar.gz` or `.tgz`; offsets are those of the unpacked tar.

| case | what went in | status | members: used + quarantined + ignored | captions: pairs + quarantined | why, where |
| --- | --- | --- | --- | --- | --- |
"""
MIDDLE = """
## What other tools made of such input

Measured once, with the releases named, on input of the same kind and size.

| case | another tool | here |
| --- | --- | --- |
"""
REASONS = """
## Reasons

The column `reason` of `quarantine.parquet`. A code never changes its meaning.

| reason | meaning |
| --- | --- |
"""


def indexed(name: str, folder: Path) -> ShardIndex:
    fault = FAULTS[name]
    return index_shard(build.place(folder, fault.builder(), fault.name), fault.budgets)


def row(name: str, index: ShardIndex) -> str:
    """A case as a line of the table."""
    facts = index.summary
    members = f"{facts['members']}: {facts['used']} + {facts['quarantined_members']} + {facts['ignored']}"
    captions = f"{facts['captions']}: {facts['pairs']} + {facts['quarantined_captions']}"
    first: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for refusal in index.quarantine.to_pylist():
        counts[refusal["reason"]] += 1
        first.setdefault(refusal["reason"], refusal["offset"])
    said = ", ".join(f"{count} `{reason}` from {first[reason]:,}" for reason, count in counts.items()) or "none"
    return f"| `{name}` | {FAULTS[name].said} | {facts['status']} | {members} | {captions} | {said} |"


def page(indexes: dict[str, ShardIndex]) -> str:
    lines = [row(name, index) for name, index in indexes.items()]
    notes = [
        f"| `{name}` | {fault.note} | {indexes[name].summary['pairs']} pairs of "
        f"{indexes[name].summary['captions']} captions, the rest with a reason |"
        for name, fault in FAULTS.items()
        if fault.note
    ]
    reasons = [f"| `{reason}` | {meaning} |" for reason, meaning in MEANINGS.items()]
    return HEAD + "\n".join([*lines, MIDDLE.rstrip("\n"), *notes, REASONS.rstrip("\n"), *reasons]) + "\n"


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    return {name: indexed(name, tmp_path_factory.mktemp(name)) for name in FAULTS}


def test_the_page_says_what_the_code_does(indexes):
    found = page(indexes)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(found)
    assert PAGE.read_text() == found, "run this test with UPDATE_DOCS=1 and review docs/faults.md"


def test_the_matrix_has_at_least_thirty_damaged_inputs(indexes):
    harmed = [name for name, index in indexes.items() if index.quarantine.num_rows]
    assert len(harmed) >= 30


def test_every_fault_says_what_went_in_and_conserves_members_and_captions(indexes):
    for name, index in indexes.items():
        assert FAULTS[name].said.endswith("."), name
        units = Counter(index.quarantine["unit"].to_pylist())
        facts = index.summary
        assert facts["members"] == facts["used"] + units["member"] + facts["ignored"], name
        assert facts["captions"] == index.pairs.num_rows + units["caption"], name
        assert set(index.quarantine["reason"].to_pylist()) <= set(MEANINGS), name


def test_damage_to_the_archive_is_never_called_ok(indexes):
    for name, index in indexes.items():
        broken = {"gzip_damaged", "gzip_truncated", "gzip_trailing", "shard_too_large", "header_damaged",
                  "member_truncated", "members_too_many", "not_a_tar", "end_missing", "zero_gap"}  # fmt: skip
        found = broken & set(index.quarantine["reason"].to_pylist())
        assert (index.summary["status"] in {"partial", "unreadable"}) == (bool(found) or name == "empty_file"
                                                                            or name == "gz_empty"), name  # fmt: skip


@pytest.mark.parametrize(
    ("name", "others", "ours"),
    [("one_header_of_750", 50, 249), ("half_of_250", 125, 126), ("one_corrupt_of_128", 0, 127)],
)
def test_more_comes_out_than_the_figure_noted_for_another_tool(name, others, ours, indexes):
    assert indexes[name].summary["pairs"] == ours > others
