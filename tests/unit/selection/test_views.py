"""A view holds the pairs that its words, its SQL and its command promise, whatever the lists look like."""

import io
from dataclasses import replace

import duckdb
import polars as pl
import pytest

from compalign_dagster import parquet
from compalign_dagster.errors import InputError
from compalign_dagster.selection import blocks, ladder, views
from compalign_dagster.selection.deciding import decide
from compalign_dagster.selection.place import parse_key
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.sql import create_views
from compalign_dagster.selection.views import GROUPS, KEPT, ORDERS, View
from tests.support.small_version import HOSTS, small_store

pytestmark = [pytest.mark.slow]

_POLICIES = {
    "fraction": {"keep_fraction": "0.3"},
    "corpora": {"keep_fraction": "0.5", "per_corpus": {"web": "0.1", "shop": "0"}},
    "rules": {
        "keep_fraction": "0.2",
        "caption_patterns": ["again"],
        "floors": {"human_fit": 0.4},
        "reward_floor": 0,
        "sampling": {"floor": -1, "full": 0.75},
    },
    "caps": {"keep_count": 60, "most_per_domain": 9},
    "cascade": {"keep_fraction": "0.3", "reward_floor": -1.25},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    small = small_store(tmp_path_factory.mktemp("small"))
    blocks.add(small.store, [blocks.entry("url_host", HOSTS[0], request="r1")])
    return small


@pytest.fixture(scope="module", params=_POLICIES)
def version(small, request):
    policy = Policy.model_validate(_POLICIES[request.param])
    if request.param != "cascade":
        return small.filter(policy, move=False)
    rows = [_turned_down(small.store, row) for row in parquet.read(small.ledger.fetch("ledger.parquet")).to_pylist()]
    return decide(small.store, rows, policy)


def _turned_down(store, row: dict) -> dict:
    """A shard of which a cascade turned every third pair down, blocked ones among them."""
    scores = pl.read_parquet(store.fetch(row["scores_key"])).with_row_index("at")
    names = {}
    for name, part in (
        ("scores", scores.filter(pl.col("at") % 3 > 0)),
        ("rejected", scores.filter(pl.col("at") % 3 == 0)),
    ):
        out = io.BytesIO()
        part = part.drop("at") if name == "scores" else part.select(*TIE_BREAK, "corpus", cheap="reward")
        part.write_parquet(out)
        names[f"{name}_key"] = f"by_hand/{row['shard']}.{name}.parquet"
        store.put_new(names[f"{name}_key"], out.getvalue())
    return {**row, **names, "data_version": "by hand"}


def decided(version) -> pl.DataFrame:
    return pl.concat([version.decided(batch).with_columns(batch=pl.lit(batch)) for batch in version.batches()])


def expected(version, view: View) -> list[tuple]:
    """The view over everything in memory."""
    group = pl.col("reason").is_null() if view.group == KEPT else pl.col("reason") == view.group
    budgets = version.lists.select("batch", "corpus", "budget")
    frame = decided(version).filter(group).join(budgets, on=["batch", "corpus"]).join(version.cuts, on="budget")
    backwards = view.order == "worst" or (view.order == "nearest" and view.group == KEPT)
    by = ["reward", *TIE_BREAK]
    falling = [not backwards, *[backwards] * 4]
    if view.order == "nearest":
        by, falling = ["far", *by], [False, *falling]
        frame = frame.with_columns(far=(pl.col("reward").cast(pl.Float64) - pl.col("cut").cast(pl.Float64)).abs())
    return frame.sort(by, descending=falling, nulls_last=True).head(view.limit).select(TIE_BREAK).rows()


def shown(version, view: View) -> list[tuple]:
    return views.rows(version, view).select(TIE_BREAK).rows()


@pytest.mark.parametrize("order", ["best", "worst", "nearest"])
def test_every_group_in_every_order_is_the_one_that_sorting_everything_gives(version, order):
    for view in [View(group, order, limit) for group in GROUPS for limit in (1, 5, 1000)]:
        assert shown(version, view) == expected(version, view), view


def test_the_policies_together_make_pairs_of_every_reason_that_views_read_in_another_way(version, small):
    wanted = {
        "fraction": {"takedown", "tied_at_cut", "below_cut"},
        "corpora": {"no_budget", "below_cut"},
        "rules": {"caption_pattern", "floor", "reward_floor", "not_sampled"},
        "caps": {"domain_cap", "below_cut"},
        "cascade": {"takedown", "cascade_reject", "reward_floor", "below_cut"},
    }
    name = next(name for name, given in _POLICIES.items() if Policy.model_validate(given) == version.policy)
    assert wanted[name] <= set(version.facts["dropped_by_reason"])
    if name == "cascade":
        taken_down = decided(version).filter(reason="takedown")["reward"]
        assert 0 < taken_down.null_count() < len(taken_down)


def test_the_planted_bug_of_a_cut_that_is_a_row_off_shows_other_pairs(small):
    version = small.filter(move=False, **_POLICIES["fraction"])
    off = replace(version, lists=version.lists.with_columns(taken=pl.col("taken") + 1))
    view = View(KEPT, "nearest", 5)
    assert shown(off, view) != expected(version, view)


def test_the_sql_of_every_view_gives_the_same_pairs_in_the_same_order(version):
    with duckdb.connect() as connection:
        create_views(connection, version)
        for view in [View(group, order, 7) for group in GROUPS for order in ORDERS]:
            assert connection.sql(views.sql(version, view)).fetchall() == shown(version, view), view


def test_a_hostile_place_is_data_in_the_sql(version):
    hostile = "x' or 1=1 --\n\u202e\x00\\"
    with duckdb.connect() as connection:
        create_views(connection, version)
        for place in (hostile, hostile[:-2], "'", "\\"):
            view = View("below_cut", limit=3, after=(0.0, "8", place, place, 0))
            assert connection.sql(views.sql(version, view)).fetchall() == shown(version, view)


def test_random_pairs_follow_the_seed_and_all_of_a_group_are_drawn_when_asked(version):
    for group in GROUPS:
        everything = shown(version, View(group, limit=10_000))
        assert len(everything) == views.size(version, group)
        assert sorted(shown(version, View(group, "random", 10_000))) == sorted(everything)
    first, again, other = (shown(version, View("below_cut", "random", 5, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_following_the_last_pair_shown_visits_every_pair_once_and_sql_agrees(version):
    with duckdb.connect() as connection:
        create_views(connection, version)
        for group in GROUPS:
            seen, view = [], View(group, limit=9)
            while found := shown(version, view):
                assert connection.sql(views.sql(version, view)).fetchall() == found
                seen += found
                last = views.rows(version, view).row(-1, named=True)
                view = View(group, limit=9, after=(last["reward"], *(last[name] for name in TIE_BREAK)))
            assert seen == shown(version, View(group, limit=10_000))


def test_the_steps_of_a_ladder_leave_no_pair_out_and_hold_about_what_they_say(version):
    for group in GROUPS:
        total = views.size(version, group)
        rungs = ladder.steps(version, group, most=10)
        assert (total == 0) == (not rungs)
        everything = shown(version, View(group, limit=10_000))
        starts = [shown(version, View(group, limit=10_000, after=rung.after)) for rung in rungs]
        assert not starts or starts[0] == everything, group
        ends = [len(found) for found in starts[1:]] + [0] if starts else []
        if not version.capped.height:
            assert [len(found) - end for found, end in zip(starts, ends, strict=True)] == [r.pairs for r in rungs]


def test_many_pairs_without_a_reward_are_divided_by_their_id_and_none_is_left_out(version, monkeypatch):
    monkeypatch.setattr(ladder, "_DIVIDED", 16)
    monkeypatch.setattr(ladder, "_HEX", 1)
    rungs = [rung for rung in ladder.steps(version, "cascade_reject") if rung.after[0] is None]
    everything = shown(version, View("cascade_reject", limit=10_000))
    assert bool(rungs) == bool(everything)
    if rungs:
        assert len(rungs) == 16
        starts = [len(shown(version, View("cascade_reject", limit=10_000, after=rung.after))) for rung in rungs]
        assert starts[0] == len(everything) and starts == sorted(starts, reverse=True)
        inside = ladder.steps(version, "cascade_reject", rungs[3].after, rungs[3].until)
        assert [(step.after, step.until) for step in inside] == [(rungs[3].after, rungs[4].after)]


def test_a_step_is_divided_into_smaller_ones_between_the_same_places(version):
    rungs = ladder.steps(version, "below_cut", most=4)
    for rung in rungs:
        inside = ladder.steps(version, "below_cut", rung.after, rung.until, most=4)
        assert sum(step.pairs for step in inside) == rung.pairs
        assert inside[0].after == rung.after and inside[-1].until == rung.until


def test_the_command_of_a_view_is_one_line_that_a_shell_reads_back():
    import shlex

    view = View("below_cut", "best", 3, after=(-0.5, "ab", "a b/'00000'.tar", 'k"\n', 0))
    words = shlex.split(view.command("current"))
    assert parse_key(words[words.index("--after") + 1]) == view.after


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[true]", '["a"]', "[NaN]", "[1, 2]", "[1,'a']", '[0, "a", "b", "c", 0, 1]',
     f"[1{'0' * 400}]", f"[1{'0' * 5000}]", "[1e999]", "[" * 5000, '{"a":' * 5000, '[0, "\\ud800"]'],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="start behind"):
        parse_key(text)


@pytest.mark.parametrize("words", [{"group": "gone"}, {"group": "kept", "order": "odd"}])
def test_an_unknown_group_or_order_is_refused_with_those_that_there_are(words):
    with pytest.raises(InputError, match="below_cut|nearest"):
        View(**words)


def test_a_random_view_makes_no_positions_of_a_whole_group(small, monkeypatch):
    version = small.filter(keep_count=60, most_per_domain=9)
    asked = View("kept", "random", 12, seed=3)
    rows = views.rows(version, asked)
    whole = pl.concat([version.decided(batch).with_columns(batch=pl.lit(batch)) for batch in version.batches()])
    drawn = views._drawn(version, asked)
    assert rows["pair_id"].to_list() == whole.filter(pl.col("reason").is_null())[drawn]["pair_id"].to_list()

    def planted(self, group):
        raise AssertionError("positions of every row")

    monkeypatch.setattr(views.Part, "members", planted)
    assert views.rows(version, asked).equals(rows)
    monkeypatch.setattr(views.Part, "drawn", lambda self, group, numbers: numbers)
    assert not views.rows(version, asked).equals(rows), "the planted bug that forgets the caps turns this red"


def test_a_view_of_nothing_reads_nothing(small, monkeypatch):
    version = small.filter(keep_count=60)
    monkeypatch.setattr(views, "Part", None)
    for order in views.ORDERS:
        assert views.rows(version, View("kept", order, 0)).height == 0
