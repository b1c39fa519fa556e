"""What a curator does on the command line: look ahead, change the policy, compare, go back, clear away."""

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import duckdb
import pyarrow.parquet as pq
import pytest

from assets.keys import FILTERED_DATASET
from compalign_dagster import decisions
from compalign_dagster.cli import main as front
from compalign_dagster.pages.diff import diff_view
from compalign_dagster.pages.what_if import what_if_view
from compalign_dagster.selection import current, deciding, prune
from compalign_dagster.selection.in_force import history
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.sql import create_views
from tests.support.small_version import SmallStore, small_store
from tests.unit.pages.test_pages import Outline


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> SmallStore:
    small = small_store(tmp_path_factory.mktemp("base"), pairs=20)
    small.filter(keep_fraction="0.2")
    small.filter(keep_fraction="0.3")
    return small


@pytest.fixture
def small(base, tmp_path, monkeypatch) -> SmallStore:
    shutil.copytree(base.home, tmp_path / "copy")
    monkeypatch.setenv("COMPALIGN_HOME", str(tmp_path / "copy"))
    return replace(base, home=tmp_path / "copy")


@pytest.fixture
def run(small, capsys):
    """Runs a command line: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = front.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def must(run):
    def call(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert code == 0, err
        return out

    return call


def refused(found: tuple[int, str, str]) -> str:
    code, _, err = found
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    return err


def names(small: SmallStore) -> list[str]:
    return [item.value["manifest"].split("/")[1][:12] for item in current.history(small.store)]


def test_what_if_prints_what_a_run_then_keeps(small, must):
    line = must("what-if", "--fraction", "0.45").splitlines()[1].split()
    kept = small.filter(keep_fraction="0.45").facts["kept"]
    assert line[:2] == ["0.45", str(kept)]


def test_what_if_as_json_has_every_group_and_publishes_nothing(small, must):
    before = [item.key for item in small.store.list()]
    found = json.loads(must("what-if", "--fraction", "0.1", "--fraction", "1", "--corpus", "shop=0.5", "--json"))
    assert [row["policy"]["keep_fraction"] for row in found] == ["0.1", "1"]
    assert all(row["policy"]["per_corpus"] == {"shop": "0.5"} for row in found)
    assert {row["dimension"] for row in found[0]["groups"]} == {"corpus", "domain", "caption_length", "resolution"}
    for row in found:
        for dimension in ("corpus", "caption_length", "resolution", "domain"):
            assert sum(group["kept"] for group in row["groups"] if group["dimension"] == dimension) == row["kept"]
    assert [item.key for item in small.store.list()] == before


def test_what_if_without_a_fraction_shows_the_usual_ones_and_one_policy_its_groups(must, tmp_path):
    assert [line.split()[0] for line in must("what-if").splitlines()] == [
        "keep",
        "0.05",
        "0.1",
        "0.2",
        "0.3",
        "0.5",
        "0.7",
    ]
    (tmp_path / "p.json").write_text('{"keep_count": 7}')
    out = must("what-if", "--policy", tmp_path / "p.json")
    assert out.splitlines()[1].split()[:2] == ["7", "7"]
    assert "caption length" in out


@pytest.mark.parametrize(
    "arguments",
    [["--fraction", "2"], ["--fraction", "x"], ["--corpus", "shop"], ["--corpus", "shop=7"], ["--dataset", "ffffffff"],
     ["--policy", "none.toml"], ["--pairs", "sideways"], ["--page", "/nowhere/page.html"]],
)  # fmt: skip
def test_wrong_usage_of_what_if_is_one_line(run, arguments):
    refused(run("what-if", *arguments))


def harvest(page: bytes) -> list[tuple[list[str], str, str]]:
    """From a page: the pair ids of every gallery that carries a source, its command and its SQL."""
    found, outline = [], page.decode()
    for part in outline.split("<section ")[1:]:
        body = part.partition("</section>")[0]
        ids = [piece.split('"')[0] for piece in body.split('data-pair="')[1:]]
        command, _, sql = body.partition('class="sql"')
        texts = [Outline(f"<pre {text.partition('</pre>')[0]}</pre>".encode()).text for text in
                 (command.partition('<pre class="command"')[2], sql)]  # fmt: skip
        found.append((ids, texts[0].strip(), texts[1].strip()))
    return found


def test_every_gallery_of_the_what_if_page_has_a_command_and_sql_that_give_its_pairs(small, must):
    version = small.filter(keep_fraction="0.3")
    views = harvest(what_if_view(version, small.landing, version.artifact.work_key[:12]))
    assert len(views) == 3
    with duckdb.connect() as connection:
        create_views(connection, version)
        for ids, command, sql in views:
            assert ids
            assert [line.split("\t")[0] for line in must(*command.split()[1:]).splitlines()] == ids
            assert [row[0] for row in connection.execute(sql).fetchall()] == ids


def test_every_gallery_of_the_diff_page_has_a_command_that_gives_its_pairs(small, must):
    a, b = small.filter(keep_fraction="0.2"), small.filter(keep_fraction="0.6", per_corpus={"shop": "0.05"})
    views = harvest(diff_view(a, b, small.landing))
    assert {command.split()[5] for _, command, _ in views} == {"entered", "left"}
    for ids, command, _ in views:
        assert [line.split("\t")[0] for line in must(*command.split()[1:]).splitlines()] == ids


def _dead_ends(page: bytes) -> list[str]:
    """Links that lead to a server, on a page that lies on a disk."""
    links = [attributes["href"] or "" for tag, attributes in Outline(page).elements if tag == "a"]
    return [link for link in links if not link.startswith("#")]


def test_a_page_in_a_file_has_commands_in_place_of_links_to_a_server(small, must, tmp_path):
    old, new = names(small)
    must("what-if", "--page", tmp_path / "what_if.html")
    must("diff", old, new, "--page", tmp_path / "diff.html")
    for name in ("what_if.html", "diff.html"):
        page = (tmp_path / name).read_bytes()
        assert _dead_ends(page) == []
        ids = {entry["data-pair"] for _, entry in Outline(page).elements if "data-pair" in entry}
        assert ids
        assert {f"compalign trace {pair}" for pair in ids} == set(
            re.findall("compalign trace [0-9a-f]+", page.decode())
        )
    assert sorted(ids)[0] in must("trace", sorted(ids)[0])


def test_the_planted_bug_of_a_served_page_in_a_file_leads_nowhere(small):
    version = small.filter(keep_fraction="0.3")
    assert _dead_ends(what_if_view(version, small.landing, "name"))


def test_the_page_is_written_where_it_was_asked_for(must, tmp_path):
    must("what-if", "--fraction", "0.3", "--page", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")


def test_a_policy_is_shown_edited_rehearsed_and_adopted(small, must, tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(must("policy", "show").replace("keep_fraction = 0.3", "keep_fraction = 0.1"))
    assert 'keep_fraction: "0.3" -> "0.1"' in must("policy", "diff", file)
    before = history(small.store)
    out = must("policy", "set", file, "--dry-run")
    assert "nothing was decided" in out
    assert history(small.store) == before
    kept = small.filter(keep_fraction="0.1", move=False).facts["kept"]
    assert f"0.1 {kept} " in " ".join(out.split())
    assert must("policy", "set", file, "--reason", "fewer,\n better", "--by", "me").startswith(
        'keep_fraction: "0.3" -> "0.1"'
    )
    now = history(small.store)[-1]
    assert (now.version, now.policy, now.by, now.why) == (3, Policy(keep_fraction="0.1"), "me", "fewer, better")
    assert "already in force" in must("policy", "set", file, "--reason", "again")
    assert [line.split()[0] for line in must("policy", "history").splitlines()] == ["3", "2", "1"]
    assert 'keep_fraction: "0.1" -> "0.2"' in must("policy", "diff", "--version", "1")
    assert json.loads(must("policy", "show", "--version", "2", "--json"))["keep_fraction"] == "0.3"


def test_a_policy_with_other_rules_says_that_lists_are_made_anew(must, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text('{"keep_fraction": 0.3, "reward_floor": 0.5}')
    out = must("policy", "set", file, "--dry-run")
    assert "every ranked list anew" in out
    assert "trial run" in out


def test_a_wrong_policy_file_decides_nothing_and_needs_a_reason(small, run, tmp_path):
    file = tmp_path / "policy.json"
    file.write_text('{"keep_fraction": 0.3, "most_per_domain": 0}')
    assert "most_per_domain" in refused(run("policy", "set", file, "--reason", "x"))
    file.write_text('{"keep_fraction": 0.7}')
    assert "--reason" in refused(run("policy", "set", file))
    refused(run("policy", "set", file, "--reason", " "))
    refused(run("policy", "diff"))
    refused(run("policy", "show", "--version", "99"))
    assert len(history(small.store)) == 2


def test_before_anybody_decided_the_settings_policy_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPALIGN_HOME", str(tmp_path / "empty"))
    assert front.run(["policy", "show"]) == 0
    assert "keep_fraction = 0.3" in capsys.readouterr().out
    assert front.run(["policy", "history"]) == 0
    assert front.run(["restore", "--history"]) == 0
    assert front.run(["prune", "--keep", "1", "--dry-run"]) == 0
    capsys.readouterr()
    assert front.run(["what-if"]) == 2
    assert "no version" in capsys.readouterr().err


def test_diff_says_how_many_entered_and_left_and_why(small, must, tmp_path):
    old, new = names(small)
    out = must("diff", old, new, "--out", tmp_path / "changes.parquet", "--page", tmp_path / "diff.html")
    table = pq.read_table(tmp_path / "changes.parquet").to_pylist()
    entered = next(line for line in out.splitlines() if line.startswith("all")).split()[1]
    assert int(entered) == len(table) > 0
    assert {(row["side"], row["cause"]) for row in table} == {("entered", "cut")}
    assert (tmp_path / "diff.html").stat().st_size > 1000
    found = json.loads(must("diff", new, old, "--json"))
    assert found["left"]["by_cause"] == {"cut": len(table)}


def test_wrong_usage_of_diff_is_one_line(small, run):
    old, new = names(small)
    refused(run("diff", old))
    refused(run("diff", old, "ffffffff"))
    refused(run("diff", old, new, "--cause", "cut"))
    refused(run("diff", old, new, "--side", "left", "--cause", "weather"))


def test_a_version_is_restored_held_and_let_go(small, run, must):
    old, new = names(small)
    out = must("restore", old, "--reason", "the charts\x1b[2J are gone", "--by", "me")
    assert f"restore  {old}  held  in place of {new}  by me: the charts?[2J are gone" in out
    small.filter(keep_fraction="0.3")
    assert names(small)[-1] == old
    lines = must("restore", "--history").splitlines()
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    assert lines[1].endswith("by a run")
    assert "follow" in must("restore", "--follow", "--reason", "charts are back")
    small.filter(keep_fraction="0.3")
    assert names(small)[-1] == new
    assert "nothing is held" in must("restore", "--follow", "--reason", "again")
    for wrong in ([], [old], ["--follow"], [old, "--history"], ["ffffffff", "--reason", "x"], [old, "--reason", " "]):
        refused(run("restore", *wrong))


def test_prune_rehearses_and_then_removes_what_is_old(small, run, must, monkeypatch):
    for fraction in ("0.4", "0.5"):
        small.filter(keep_fraction=fraction)
    assert "nothing was removed" in must("prune", "--keep", "1", "--reason", "room"), "all of it is younger than a day"
    monkeypatch.setattr(prune, "YOUNG", timedelta(0))
    monkeypatch.setattr(prune, "_age", lambda item: datetime(2020, 1, 1, tzinfo=UTC))
    before = [item.key for item in small.store.list()]
    out = must("prune", "--keep", "2", "--dry-run")
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["version", "version"]
    assert [item.key for item in small.store.list()] == before
    refused(run("prune", "--keep", "2"))
    refused(run("prune", "--keep", "0", "--dry-run"))
    assert "removed" in must("prune", "--keep", "2", "--reason", "room", "--by", "me")
    assert decisions.current(small.store, "prune").value["by"] == "me"
    left = [item.key for item in small.store.list("filtered_dataset/") if item.key.endswith("manifest.json")]
    assert len(left) == 2
    small.filter(keep_fraction="0.2", move=False)
    rows = deciding.Version.open(current.read(small.store)).kept(small.batches[0]).select(TIE_BREAK)
    assert rows.height


@pytest.mark.parametrize("verb", ["what-if", "policy", "diff", "restore", "prune"])
def test_every_verb_explains_itself(must, verb):
    assert "Usage" in must(verb, "--help")


def test_dagster_is_told_of_a_restored_version_where_the_profile_has_an_instance(small, must, monkeypatch):
    old, new = names(small)
    for variable in ("DAGSTER_HOME", "GX_ANALYTICS_ENABLED"):
        monkeypatch.setenv(variable, "")  # what the verb sets is taken back after the test
    small.settings.dagster_home.mkdir()
    must("restore", old, "--reason", "charts", "--by", "me")
    with dg.DagsterInstance.get() as instance:
        (event,) = instance.fetch_observations(FILTERED_DATASET, limit=5).records
    told = {name: value.value for name, value in event.asset_observation.metadata.items()}
    assert old in told["current"]
    assert new in told["was"]
    assert (told["action"], told["by"], told["why"], told["decision"]) == ("restore", "me", "charts", 3)


def test_a_decision_stands_when_dagster_cannot_be_told(small, run, monkeypatch):
    old, _ = names(small)
    monkeypatch.setenv("DAGSTER_HOME", "")
    (small.settings.dagster_home / "dagster.yaml").mkdir(parents=True)  # where the configuration belongs
    code, _, err = run("restore", old, "--reason", "charts")
    assert code == 0
    assert "the decision stands" in err
    assert names(small)[-1] == old
