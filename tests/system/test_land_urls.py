"""A list of URLs landed by the real img2dataset from a web server on loopback."""

import csv
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from compalign_dagster.crawl.index import Budgets, index_shard
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import InputError
from compalign_dagster.landing.download import Fetching, land_list
from compalign_dagster.store import open_store
from tests.conftest import ROOT
from tests.support import web_server
from tests.support.shard_builder import picture

pytestmark = [pytest.mark.slow, pytest.mark.system]
PYTHON = ROOT / ".venv-img2dataset" / "bin" / "python"


@pytest.fixture(autouse=True)
def _img2dataset():
    if not PYTHON.exists():
        pytest.skip("img2dataset is not installed (make img2dataset)")


@pytest.fixture
def web():
    with web_server.running() as server:
        yield server


@pytest.fixture
def landing(tmp_path):
    return open_store(str(tmp_path / "landing" / "cc3m"))


def fetching(**options) -> Fetching:
    how = {"python": PYTHON, "caption_col": "caption", "shard_rows": 5, "seconds": 2, "threads": 8,
           "member_bytes": 1 << 20, "allow_private": True}  # fmt: skip
    return Fetching(**{**how, **options})


def listed(tmp_path, urls):
    path = tmp_path / "cc3m.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("url", "caption"), *((url, f"caption of {at}") for at, url in enumerate(urls))])
    return path


def refused(landing, name):
    return {row["row"]: row["reason"] for row in pq.read_table(landing.fetch(name)).to_pylist()}


def test_a_list_is_landed_byte_for_byte_and_every_row_accounted_for(web, tmp_path, landing, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    answers = [
        "/picture/0", "/status/404", "/picture/2", "/status/503", "/to/" + web.url("/picture/4"), "/drip/", "/cut/",
        "/large/2000000", "/robots/", "/to/file:///etc/passwd", "/picture/10",
    ]  # fmt: skip
    urls = [web.url(answer) for answer in answers]
    urls += ["file:///etc/passwd", "http://127.0.0.1:1/x", "ftp://127.0.0.1/x", ""]
    landed = land_list(listed(tmp_path, urls), landing, tmp_path / "work", fetching())
    assert sum(item.rows for item in landed) == len(urls)
    assert sum(item.written for item in landed) == 4
    reasons = sum((item.refused for item in landed), Counter())
    assert reasons == {
        "http_404": 1, "http_503": 1, "http_302": 1, "timed_out": 1, "cut_short": 1, "too_large": 1,
        "disallowed_by_robots_tag": 1, "unreachable": 1, "scheme_refused": 2, "url_missing": 1,
    }  # fmt: skip
    with tarfile.open(landing.fetch("cc3m-00000.tar")) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}
    facts = [json.loads(data) for name, data in sorted(found.items()) if name.endswith(".json")]
    assert [entry["list_row"] for entry in facts] == [0, 2, 4]
    for entry in facts:
        assert found[f"{entry['key']}.jpg"] == picture(entry["list_row"])
        assert found[f"{entry['key']}.txt"].decode() == f"caption of {entry['list_row']}"
    assert refused(landing, "cc3m.urls.refused.parquet") == {
        11: "scheme_refused", 13: "scheme_refused", 14: "url_missing",
    }  # fmt: skip
    shards = [item.key for item in landing.list() if item.key.endswith(".tar")]
    pairs = [index_shard(Shard(name, landing, name), Budgets()).pairs for name in shards]
    assert sum(table.num_rows for table in pairs) == 4
    assert not list((tmp_path / "work").iterdir())
    asked = len(web.asked)
    again = land_list(tmp_path / "cc3m.csv", landing, tmp_path / "work", fetching())
    assert len(web.asked) == asked
    assert [item.written for item in again] == [item.written for item in landed]


def test_this_machine_and_its_files_are_never_asked(web, tmp_path, landing):
    urls = [
        web.url("/picture/1"), web.url("/picture/1", "localhost"), web.url("/picture/1", "2130706433"),
        web.url("/picture/1", "127.1"), web.url("/picture/1", "[::ffff:127.0.0.1]"), f"file://{tmp_path}/cc3m.csv",
    ]  # fmt: skip
    landed = land_list(listed(tmp_path, urls), landing, tmp_path / "work", fetching(allow_private=False))
    assert web.asked == []
    assert sum((item.refused for item in landed), Counter()) == {"address_refused": 5, "scheme_refused": 1}
    assert not any(item.key.endswith(".tar") for item in landing.list())


def test_the_planted_bug_of_img2dataset_without_its_guard_is_caught(web, tmp_path, landing, monkeypatch):
    """Started as a module instead of behind the guard, it asks this machine at once."""
    from compalign_dagster.landing import fetch

    unguarded = tmp_path / "unguarded.py"
    whole = Path(fetch.__file__).read_text()
    unguarded.write_text(whole.replace("    install(json.loads(sys.argv[1]))\n", "    pass\n"))
    monkeypatch.setattr(fetch, "__file__", str(unguarded))
    urls = [web.url("/picture/1", "localhost")]
    land_list(listed(tmp_path, urls), landing, tmp_path / "work", fetching(allow_private=False))
    assert web.asked == ["/picture/1"]


def test_an_interrupted_fetch_goes_on_without_asking_again(web, tmp_path, landing, monkeypatch):
    urls = [web.url(f"/picture/{at}") for at in range(8)]
    path = listed(tmp_path, urls)
    crashing = type(landing).put_new

    def full_disk(store, key, source):
        if key.endswith("00001.tar"):
            raise OSError("disk full")
        return crashing(store, key, source)

    with monkeypatch.context() as broken:
        broken.setattr(type(landing), "put_new", full_disk)
        with pytest.raises(OSError, match="disk full"):
            land_list(path, landing, tmp_path / "work", fetching())
    landed = land_list(path, landing, tmp_path / "work", fetching())
    assert sum(item.written for item in landed) == 8
    assert len(web.asked) == 8


def test_an_img2dataset_that_does_not_start_is_one_clear_line(web, tmp_path, landing):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such module\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(InputError, match=r"shard 00000 .*img2dataset\.log.*Run the same command again"):
        land_list(listed(tmp_path, [web.url("/picture/1")]), landing, tmp_path / "work", fetching(python=broken))
    assert [item.key for item in landing.list()] == []
