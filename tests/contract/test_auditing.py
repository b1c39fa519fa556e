"""trace, impact, takedown and audit-db as the command line has them, on a store that a whole graph would leave."""

import json

import dagster as dg
import duckdb
import polars as pl
import pytest

from compalign_dagster.cli import main as front
from compalign_dagster.cli.trace import runs
from compalign_dagster.lineage import places
from compalign_dagster.selection import versions
from compalign_dagster.versions import digest_bytes
from tests.support.shard_builder import picture, tar
from tests.support.small_version import HOSTS, small_store
from tests.unit.lineage.test_takedown import the_pair


def _made(home):
    found = small_store(home, pairs=8)
    found.filter(keep_fraction="0.5")
    return found


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A store that the test may alter."""
    found = _made(tmp_path / "home")
    monkeypatch.setenv("COMPALIGN_HOME", str(found.home))
    return found


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return _made(tmp_path_factory.mktemp("auditing") / "home")


@pytest.fixture
def shared(once, monkeypatch):
    """A store that other tests read too."""
    monkeypatch.setenv("COMPALIGN_HOME", str(once.home))
    return once


@pytest.fixture
def compalign(capsys):
    def call(*arguments):
        code = front.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_lineage_for_a_catalogue_is_a_line_for_each_artifact(shared, compalign, tmp_path):
    code, out, _ = compalign("openlineage")
    assert code == 0
    told = [json.loads(line) for line in out.splitlines()]
    assert told[-1]["job"]["name"] == "filtered_dataset"
    code, out, _ = compalign("openlineage", "--out", tmp_path / "events.ndjson")
    assert (code, out) == (0, f"{tmp_path / 'events.ndjson'}  {len(told)} events\n")
    assert [json.loads(line) for line in (tmp_path / "events.ndjson").read_text().splitlines()] == told
    code, _, complaint = compalign("openlineage", "--out", tmp_path / "no" / "events.ndjson")
    assert (code, len(complaint.splitlines())) == (2, 1)


def test_the_auditors_ten_minutes(small, compalign, tmp_path):
    row = the_pair(small)
    asked = tmp_path / "request.csv"
    asked.write_text(f"kind,value,request\nurl,{row['url']},ticket-1234\n")
    database = tmp_path / "audit.duckdb"
    assert compalign("verify")[0] == 0
    assert compalign("audit-db", database)[0] == 0
    code, out, _ = compalign("impact", "--url", row["url"])
    assert code == 0
    assert out.startswith("1 pairs (1 occurrences, 1 images) in batch-00001\n")
    with duckdb.connect(database, read_only=True) as connection:
        assert connection.execute("select pair_id from pairs where url = ?", [row["url"]]).fetchall()
    code, out, _ = compalign("trace", row["pair_id"])
    assert code == 0
    assert row["url"] in out
    assert "run not recorded" in out
    code, out, _ = compalign("takedown", asked, "--dry-run")
    assert (code, "blocked from" in out) == (0, False)
    assert not small.store.exists("decisions/takedowns/00000001.json")
    code, out, _ = compalign("takedown", asked, "--reason", "ticket 1234", "--purge", "--yes")
    assert code == 0
    name = versions.find(small.store, "current").work_key[:12]
    kept = versions.resolve(small.store, "current").find([row["pair_id"]])["reason"].to_list() == [None]
    assert (f"kept by 1 versions: {name}" in out) == kept
    assert "1 landed shards" in out
    small.filter(keep_fraction="0.5")
    code, _, err = compalign("trace", "--url", row["url"])
    assert (code, err.count("\n")) == (2, 1)
    code, out, _ = compalign("trace", row["pair_id"])
    assert "REDACTED" in out
    assert "DROPPED: takedown" in out
    code, out, _ = compalign("verify")
    assert code == 0, out
    assert "redacted" in out
    code, out, _ = compalign("takedown", "--list")
    assert [line.split()[2] for line in out.splitlines()] == ["request", "purge", "purged"]


def test_json_is_json_and_says_the_same(shared, compalign):
    row = the_pair(shared)
    _, out, _ = compalign("trace", "--shard", row["shard"], "--key", row["key"], "--json")
    assert json.loads(out)["pairs"][0]["pair_id"] == row["pair_id"]
    _, out, _ = compalign("impact", "--url-host", HOSTS[0], "--json")
    told = json.loads(out)
    code, out, _ = compalign("impact", "--url-host", HOSTS[0])
    assert code == 0
    assert f"{told['pairs']:,} pairs" in out
    assert told["sql"] in out


def test_an_image_file_is_traced_and_its_likes_are_found(shared, compalign, tmp_path):
    image = tmp_path / "picture.jpg"
    image.write_bytes(picture(1))
    code, out, _ = compalign("trace", "--image", image)
    assert code == 0
    index = pl.concat([places.index_of(shared.store, item) for item in places.deliveries(shared.store)])
    held = index.filter(image_sha256=digest_bytes(picture(1))).height
    assert held > 1
    assert f"{held} occurrence(s) in " in out
    code, out, _ = compalign("impact", "--near", image, "--bits", "0")
    assert code == 0
    assert "batch-00001" in out


@pytest.mark.parametrize("option", [["--batch", "batch-00001"], ["--labeler", "ada"], ["--image-hash", "0" * 64]])
def test_impact_answers_for_everything_else(shared, compalign, option):
    code, out, _ = compalign("impact", *option)
    assert code == 0
    assert "version" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["trace"],
        ["trace", "zz"],
        ["trace", "0" * 32],
        ["trace", "--shard", "web/00000.tar"],
        ["trace", "0" * 32, "--url", "https://a.example/"],
        ["impact"],
        ["impact", "--batch", "batch-99999"],
        ["impact", "--url-host", "com"],
        ["impact", "--near", __file__],
        ["takedown"],
        ["takedown", __file__],
        ["takedown", __file__, "--dry-run"],
        ["takedown", __file__, "--purge", "--dry-run"],
        ["takedown", "--withdraw", "nobody", "--reason", "r"],
        ["audit-db", __file__],
        ["audit-db", "/tmp/never/audit.duckdb", "--version", "zzzz"],
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(shared, compalign, arguments):
    before = {item.key for item in shared.store.list()}
    code, _, err = compalign(*arguments)
    assert code == 2
    assert err.startswith("compalign: ")
    assert err.count("\n") == 1
    assert {item.key for item in shared.store.list()} == before


def test_a_purge_asks_first(small, compalign, tmp_path, monkeypatch):
    asked = tmp_path / "request.jsonl"
    asked.write_text(json.dumps({"kind": "url_host", "value": HOSTS[0]}) + "\n")
    monkeypatch.setattr("click.confirm", lambda *_, **__: False)
    code, out, _ = compalign("takedown", asked, "--reason", "r", "--purge")
    assert code == 0
    assert "blocked from the next version on" in out
    assert "purged" not in out
    assert not small.store.exists("decisions/redactions/00000001.json")


def test_captions_do_not_steer_the_terminal(small, compalign):
    fields = json.dumps(
        {"captions": ["\x1b]0;owned\x07 a caption \u202e"], "url": "https://a.example/\x1b[2J"}
    ).encode()
    (small.home / "landing" / "web" / "00099.tar").write_bytes(tar([("k.jpg", picture(77)), ("k.json", fields)]))
    small.index()
    code, out, _ = compalign("trace", "--shard", "web/00099.tar", "--key", "k")
    assert code == 0
    assert "a caption" in out
    assert not any(not character.isprintable() and character != "\n" for character in out)


def test_the_run_is_found_in_the_instance_by_the_data_version(small):
    artifact = versions.find(small.store, "current")

    @dg.asset(key=dg.AssetKey("filtered_dataset"))
    def dataset() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion(artifact.data_version))

    assert runs(small.settings)(artifact) is None
    small.settings.dagster_home.mkdir(parents=True)
    find = runs(small.settings)
    with dg.DagsterInstance.get() as instance:
        run = dg.materialize([dataset], instance=instance)
        dg.materialize([dataset], instance=instance)
    assert find(artifact) == run.run_id
    assert find(small.ledger) is None
