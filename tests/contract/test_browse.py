"""Every view of a dataset's pages says how to get the same pairs: command and SQL, harvested from the page and run."""

import html
import http.client
import re
import shlex
import threading
from typing import NamedTuple
from urllib.parse import quote

import duckdb
import pytest

from assets.filtered_dataset import publish_dataset
from compalign_dagster import latest
from compalign_dagster.cli.main import run
from compalign_dagster.errors import InputError
from compalign_dagster.lineage.audit_db import build
from compalign_dagster.pages.browse import Browser
from compalign_dagster.pages.server import serve
from compalign_dagster.selection import current
from compalign_dagster.selection.in_force import adopt
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.version import Version
from tests.support.small_version import small_store

pytestmark = [pytest.mark.slow]

POLICY = {
    "keep_fraction": "0.3",
    "per_corpus": {"shop": "0.5"},
    "caption_patterns": ["again"],
    "reward_floor": -1.5,
    "sampling": {"floor": -1.5, "full": 1.0},
    "most_per_domain": 30,
}


class Shown(NamedTuple):
    """A view as a page shows it."""

    pairs: list[str]
    command: str
    sql: str


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    small = small_store(tmp_path_factory.mktemp("small"))
    policy = adopt(small.store, Policy.model_validate(POLICY))
    ledger, number = latest.numbered(small.store, "score_ledger")
    dataset, _ = publish_dataset(small.storage, small.settings, policy, ledger)
    current.move(dataset, policy=policy.version, ledger=number)
    return small


@pytest.fixture(scope="module")
def page(small) -> str:
    dataset = current.read(small.store)
    return dataset.store.read(dataset.file_key("page.html")).decode()


@pytest.fixture(scope="module")
def database(small):
    build(small.store, small.home / "audit.duckdb", Version.open(current.read(small.store)))
    with duckdb.connect(small.home / "audit.duckdb", read_only=True) as connection:
        yield connection


def views_of(page: str) -> list[Shown]:
    found = []
    for part in re.findall(r'<section class="view"[^>]*>(.*?)</section>', page, re.DOTALL):
        command, sql = (
            html.unescape(re.search(f'<pre class="{name}"[^>]*>(.*?)</pre>', part, re.DOTALL)[1])
            for name in ("command", "sql")
        )
        found.append(Shown(re.findall(r'data-pair="([0-9a-f]{32})"', part), command, sql))
    return found


def said(small, command: str, capsys, monkeypatch) -> list[str]:
    monkeypatch.setenv("COMPALIGN_HOME", str(small.home))
    words = shlex.split(command)
    assert words[:2] == ["compalign", "browse"]
    capsys.readouterr()
    assert run(words[1:]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_command_and_the_sql_of_every_view_give_the_pairs_that_it_shows(small, page, database, capsys, monkeypatch):
    shown = views_of(page)
    assert len(shown) >= 3 * 4
    for view in shown:
        assert view.pairs
        assert [row[0] for row in database.sql(view.sql).fetchall()] == view.pairs, view.sql
        assert [line.split("\t")[0] for line in said(small, view.command, capsys, monkeypatch)] == view.pairs


def test_the_planted_bug_of_a_view_that_shows_another_pair_is_found(page, database):
    first = views_of(page)[0]
    changed = views_of(page.replace(first.pairs[0], "0" * 32))[0]
    assert [row[0] for row in database.sql(changed.sql).fetchall()] != changed.pairs


def test_the_waterfalls_command_and_sql_count_what_the_page_says(small, page, database, capsys, monkeypatch):
    table = page[page.index('aria-label="From all pairs to the kept ones"') :]
    command, sql = (
        html.unescape(re.search(f'<pre class="{name}"[^>]*>(.*?)</pre>', table, re.DOTALL)[1])
        for name in ("command", "sql")
    )
    facts = current.read(small.store).facts
    wanted = {"kept": facts["kept"], **facts["dropped_by_reason"]}
    assert dict(database.sql(sql).fetchall()) == wanted
    lines = (line.split("\t") for line in said(small, command, capsys, monkeypatch))
    assert {name: int(pairs) for name, pairs in lines} == wanted
    assert facts["pairs"] == sum(wanted.values()) + facts["quarantined"]


def test_every_reason_of_the_dataset_has_its_section_with_count_and_link(small, page):
    facts = current.read(small.store).facts
    assert len(facts["dropped_by_reason"]) >= 4
    name = current.read(small.store).work_key[:12]
    for reason in facts["dropped_by_reason"]:
        assert f'href="/browse/{name}/{reason}"' in page, reason
        assert f'data-group="{reason}"' in page, reason


def test_any_dropped_pair_is_three_clicks_from_the_assets_page_to_its_picture(small, page, database):
    """The page's link is the first; a link of the page and one of what it leads to are the others."""
    browse = Browser(small.store, small.landing)
    reached: set[str] = set()
    firsts = set(re.findall(r'href="(/browse/[^"]+)"', page))
    for first in map(html.unescape, firsts):
        opened = browse(*first.partition("?")[::2]).decode()
        reached.update(re.findall(r'data-pair="([0-9a-f]{32})"', opened))
        for second in set(map(html.unescape, re.findall(r'<li><a href="(/browse/[^"]+after[^"]+)"', opened))):
            reached.update(re.findall(r'data-pair="([0-9a-f]{32})"', browse(*second.partition("?")[::2]).decode()))
    dropped = {
        row[0] for row in database.sql("select distinct pair_id from decided where reason is not null").fetchall()
    }
    assert dropped <= reached
    assert 'src="data:image/jpeg' in opened


def test_a_drawn_page_carries_its_command_and_sql_too_and_the_next_one_goes_on(small, database, capsys, monkeypatch):
    browse, path, seen = Browser(small.store, small.landing), "/browse/current/below_cut", []
    while path:
        page = browse(*path.partition("?")[::2]).decode()
        (view,) = views_of(page)
        assert [row[0] for row in database.sql(view.sql).fetchall()] == view.pairs
        assert [line.split("\t")[0] for line in said(small, view.command, capsys, monkeypatch)] == view.pairs
        seen += view.pairs
        following = re.search(r'rel="next" href="([^"]+)"', page)
        path = html.unescape(following[1]) if following else ""
    assert len(seen) == current.read(small.store).facts["dropped_by_reason"]["below_cut"]


def test_a_pairs_page_says_what_was_decided_of_each_occurrence(small, database):
    repeated = "select pair_id, count(*) from decided group by 1 order by 2 desc, 1 limit 1"
    ((pair, times),) = database.sql(repeated).fetchall()
    assert times > 1
    page = Browser(small.store, small.landing)(f"/pair/{pair}").decode()
    assert page.count("Where it lies") >= times
    decided = {
        row[0]
        for row in database.sql(f"select coalesce(reason, 'kept') from decided where pair_id = '{pair}'").fetchall()
    }
    assert all(reason.replace("_", " ") in page for reason in decided)


@pytest.mark.parametrize(
    "path", ["/", "/browser", "/browse/a/b/c", "/pair", "/pair/a/b/c", "/filtered_dataset/x/page.html"]
)
def test_other_paths_are_none_of_the_drawn_pages(small, path):
    assert Browser(small.store, small.landing)(path) is None


@pytest.mark.parametrize(
    ("path", "query"),
    [("/browse/ffffffff", ""), ("/browse/current/gone", ""), ("/browse/current/kept", "after=x"),
     ("/pair/" + "z" * 32, ""), ("/pair/" + "0" * 32, ""), ("/pair/current/..", ""),
     ("/browse/current/kept%2f..%2f", "")],
)  # fmt: skip
def test_a_drawn_page_of_what_is_not_there_is_refused_by_name(small, path, query):
    with pytest.raises(InputError):
        Browser(small.store, small.landing)(path, query)


HOSTILE_PLACES = [
    "[1" + "0" * 400 + "]", "[1" + "0" * 5000 + "]", "[" * 3000, '{"a":' * 3000, '[0,"\\ud800"]', '[0,"a","\\udfff"]',
    "[1e999]", "[-1e999]", "[NaN]", "[0,[]]", '[0,"","","",1e9]', '[null,"","","",true]', "\x00", "\ud800",
]  # fmt: skip
HOSTILE_BUT_SOUND = ['[0,"\\u0000"]', '[0,"\'; drop table decided; --"]', '[0,"","","",' + "9" * 300 + "]", "[null]"]


@pytest.fixture(scope="module")
def answered(small):
    """What the page server answers to a path: (status, first line)."""
    server = serve(small.store, 0, Browser(small.store, small.landing))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", "127.0.0.1")
        connection.endheaders()
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    yield ask
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["after", "until"])
def test_the_server_refuses_every_place_that_is_none_with_one_line_and_goes_on(answered, name):
    for place in HOSTILE_PLACES:
        status, text = answered(f"/browse/current/below_cut?{name}={quote(place, errors='surrogatepass')}")
        assert 400 <= status < 500, place[:40]
        assert len(text.splitlines()) == 1, place[:40]
    for place in HOSTILE_BUT_SOUND:
        assert answered(f"/browse/current/below_cut?{name}={quote(place)}")[0] == 200, place[:40]
    assert answered("http://[/browse")[0] == 400
    assert answered("/browse/current/below_cut")[0] == 200


def test_a_shard_that_is_gone_or_another_one_costs_pictures_and_nothing_else(small, database):
    browse = Browser(small.store, small.landing)
    first, second = sorted((small.home / "landing" / "web").glob("*.tar"))
    before, there = browse("/browse/current/caption_pattern").decode(), [first.read_bytes(), second.read_bytes()]
    try:
        first.write_bytes(there[1])
        second.unlink()
        after = browse("/browse/current/caption_pattern").decode()
    finally:
        first.write_bytes(there[0])
        second.write_bytes(there[1])
    assert 0 < after.count("<img") < before.count("<img")
    assert views_of(after)[0].pairs == views_of(before)[0].pairs


@pytest.mark.parametrize(
    "arguments",
    [["--reason", "gone"], ["--dataset", "ffffffff"], ["--reason", "kept", "--after", "x"],
     ["--reason", "kept", "--order", "up"]],
)  # fmt: skip
def test_what_is_not_there_is_refused_in_one_line(small, arguments, capsys, monkeypatch):
    monkeypatch.setenv("COMPALIGN_HOME", str(small.home))
    assert run(["browse", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
