"""Each budget refuses what is beyond it, costs one row, and bounds the memory of the process that reads."""

import gzip
import json
import subprocess
import sys
from dataclasses import fields

import pytest

from compalign_dagster.crawl.index import Budgets, ShardIndex, index_shard
from tests.conftest import ROOT
from tests.support import faults
from tests.support import shard_builder as build

_MEASURE = """
import json, sys
from pathlib import Path
from compalign_dagster.crawl.index import Budgets, index_shard
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.store import LocalStore
from tests.support.memory import mib

folder, names, budgets = sys.argv[1], sys.argv[2].split(), json.loads(sys.argv[3])
index_shard(Shard(names[0], LocalStore(Path(folder)), names[0]))
before = mib()
for name in names[1:]:
    index = index_shard(Shard(name, LocalStore(Path(folder)), name), Budgets(**budgets))
print(json.dumps([mib() - before, index.quarantine.num_rows]))
"""


def extra_mib(folder, *names: str, **budgets: int) -> tuple[int, int]:
    """How much higher the peak of a process is after it read these shards, in MiB; rows refused in the last."""
    build.place(folder, build.good_shard(3), "warm.tar")
    command = [sys.executable, "-c", _MEASURE, str(folder), " ".join(["warm.tar", *names]), json.dumps(budgets)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return tuple(json.loads(done.stdout))


def index_of(folder, entries, **budgets: int) -> ShardIndex:
    return index_shard(build.place(folder, build.tar(entries)), Budgets(**budgets))


def reasons(index: ShardIndex) -> list[tuple[str, str]]:
    return [(row["unit"], row["reason"]) for row in index.quarantine.to_pylist()]


BIG_TEXT = json.dumps({"captions": ["x"] * 3}).encode()
CASES = {
    "member_bytes": (4000, [("a.jpg", bytes(4001)), ("a.txt", b"x")], "member_too_large"),
    "image_pixels": (999, [("a.png", build.picture(0, (40, 25), "PNG")), ("a.txt", b"x")], "image_too_large"),
    "caption_bytes": (4, [("a.jpg", build.picture()), ("a.txt", "été".encode())], "caption_too_long"),
    "members": (1, [("a.jpg", build.picture()), ("a.txt", b"x")], "members_too_many"),
    "json_bytes": (10, [("a.jpg", build.picture()), ("a.json", BIG_TEXT), ("a.txt", b"x")], "member_too_large"),
    "kept_bytes": (1064, [("a.jpg", build.picture()), ("a.txt", b"x")], "captions_too_many"),
    "sample_captions": (2, [("a.jpg", build.picture()), ("a.json", BIG_TEXT), ("a.txt", b"x")], "captions_too_many"),
}


def test_every_budget_has_a_case():
    assert {*CASES, "unpacked_bytes"} == {field.name for field in fields(Budgets)}


@pytest.mark.parametrize("name", CASES)
def test_what_is_one_beyond_a_budget_is_refused_and_what_meets_it_is_not(name, tmp_path):
    budget, entries, reason = CASES[name]
    found = index_of(tmp_path, [*entries, *build.samples(1)], **{name: budget})
    assert reason in {refused for _, refused in reasons(found)}
    wider = budget + {"member_bytes": 1, "json_bytes": 40, "members": 9}.get(name, 1)
    assert reason not in {refused for _, refused in reasons(index_of(tmp_path, entries, **{name: wider}))}


def test_the_budget_of_unpacked_bytes_holds_between_members_too(tmp_path):
    whole = build.good_shard(3)
    shard = build.place(tmp_path, gzip.compress(whole), faults.GZ)
    cut = build.header_offsets(whole)[3]
    index = index_shard(shard, Budgets(unpacked_bytes=cut))
    assert reasons(index) == [("shard", "shard_too_large")]
    assert index.pairs.num_rows == 1
    assert reasons(index_shard(shard, Budgets(unpacked_bytes=len(whole)))) == []


def bombs(folder) -> dict[str, str]:
    """Shards that would cost half a gigabyte and more if they were believed; name by kind."""
    build.place(folder, build.with_entry(("bad.png", build.png_bomb(40_000, 40_000))), "pixels.tar")
    build.place(folder, faults.gz_bomb(512 << 20), "gzip.tar.gz")
    build.place(folder, build.with_entry(("bad.json", b"[" * 900_000)), "json.tar")
    with (folder / "member.tar").open("wb") as out:  # a hole of 512 MiB: a member that is there, and huge
        out.write(build.tarfile_info("bad.jpg", 512 << 20).tobuf())
        out.truncate(512 + (512 << 20) + 1024)
    many = json.dumps({"captions": ["c"] * 1000}).encode()
    crowd = build.tar((f"{at:05d}.json", many) for at in range(400))
    build.place(folder, gzip.compress(crowd), "crowd.tar.gz")
    return {"pixels": "pixels.tar", "gzip": "gzip.tar.gz", "json": "json.tar", "member": "member.tar"}


@pytest.mark.slow
def test_bombs_cost_one_row_each_and_bounded_memory(tmp_path):
    for kind, name in bombs(tmp_path).items():
        mib, rows = extra_mib(tmp_path, name, unpacked_bytes=400 << 20)
        assert rows == 1, kind
        assert mib < 60, f"{kind}: {mib} MiB"


@pytest.mark.slow
def test_captions_without_end_are_held_up_to_the_budget(tmp_path):
    bombs(tmp_path)
    mib, rows = extra_mib(tmp_path, "crowd.tar.gz", kept_bytes=10 << 20)
    assert rows < 22_000
    assert mib < 60
    mib, rows = extra_mib(tmp_path, "crowd.tar.gz")
    assert rows == 400_000
    assert mib > 150, "without the budget the same file costs more: the measure must show that"


@pytest.mark.slow
def test_a_reader_that_holds_what_it_unpacks_would_be_noticed(tmp_path):
    bombs(tmp_path)
    mib, _ = extra_mib(tmp_path, "gzip.tar.gz", unpacked_bytes=400 << 20, member_bytes=1 << 41)
    assert mib > 300, "a member budget beyond the bomb makes the reader hold it: the measure must show that"


@pytest.mark.slow
def test_memory_does_not_follow_the_size_of_a_shard(tmp_path):
    image = build.picture(0, (400, 300), "PNG")
    for count in (20, 400):
        entries = [(f"{at:05d}.png", image + bytes(100_000)) for at in range(count)]
        build.place(tmp_path, build.tar(entries), f"{count}.tar")
        build.place(tmp_path, gzip.compress(build.tar(entries), 1), f"{count}.tar.gz")
    for suffix in (".tar", ".tar.gz"):
        mib, _ = extra_mib(tmp_path, f"20{suffix}", f"400{suffix}")
        assert mib < 60, f"{suffix}: {mib} MiB"
