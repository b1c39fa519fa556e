import logging
from collections.abc import Callable

import pytest

from compalign_dagster.crawl.batches import ShardStamp
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.scoring.sharing import Failed, Shares
from compalign_dagster.scoring.work import ShardWork
from compalign_dagster.store import ObjectMissingError
from tests.support.scoring import travelled


def works(count: int) -> list[ShardWork]:
    return [
        ShardWork(
            *[f"{at:032x}"] * 2, f"web/{at}.tar", ShardStamp(f"web/{at}.tar", 1, "1"), "/l", "/s", "p", "v", 9, "m", {}
        )
        for at in range(count)
    ]


def finish(shares: Shares, dies: Callable[[int], bool] = lambda turn: False) -> list[str]:
    """Three workers take turns until nothing is left; who dies loses all that it holds."""
    done, turn = [], 0
    while shares.unfinished and turn < 1000:
        turn, worker = turn + 1, turn % 3
        given = shares.give(worker)
        if dies(turn):
            shares.died(worker, f"worker {worker}", "SIGKILL")
            continue
        done += [shares.done(worker, work.key).shard for work in given]
    return done


def test_every_work_is_done_once_although_workers_die():
    done = finish(Shares(works(40), 3), lambda turn: turn in (2, 5, 6))
    assert sorted(done) == sorted(work.shard for work in works(40))


def test_the_planted_bug_a_dead_workers_shards_are_forgotten_turns_this_red(monkeypatch):
    monkeypatch.setattr(Shares, "died", lambda self, worker, *_: self._held.pop(worker))
    done = finish(Shares(works(40), 3), lambda turn: turn in (2, 5, 6))
    assert sorted(done) != sorted(work.shard for work in works(40))


def test_few_are_given_at_once_and_fewer_towards_the_end():
    shares = Shares(works(20), 2)
    sizes = []
    while given := shares.give("a"):
        sizes.append(len(given))
    assert sizes[0] == 4
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    assert sum(sizes) == shares.unfinished == 20


def test_a_dead_worker_is_named_with_its_shards_and_they_are_next(caplog):
    shares = Shares(works(9), 2)
    held = shares.give("a")
    with caplog.at_level(logging.WARNING):
        shares.died("a", "scoring worker 1 of 2 (cuda:0)", "SIGKILL")
    assert "scoring worker 1 of 2 (cuda:0) died (SIGKILL)" in caplog.text
    assert ", ".join(work.shard for work in held) in caplog.text
    assert shares.give("b") == held


def test_a_shard_at_which_one_worker_after_the_other_dies_ends_the_run():
    shares = Shares(works(2), 1)
    for number in range(2):
        shares.give(number)
        shares.died(number, f"worker {number}", "SIGKILL")
    shares.give("c")
    with pytest.raises(CompalignError, match=r"shard web/0\.tar: expected workers that live .*found 3 of them dead"):
        shares.died("c", "worker c", "SIGKILL")


def test_a_shard_at_which_a_worker_hangs_is_repeated_once_elsewhere_and_then_named(caplog):
    shares = Shares(works(2), 1)
    held = shares.give("a")
    with caplog.at_level(logging.WARNING):
        shares.hung("a", "worker a", 1800.0)
    assert "worker a hung (1800 s without a pair) and was ended; its shards go to another" in caplog.text
    assert shares.give("b") == held
    with pytest.raises(
        CompalignError, match=r"shard web/0\.tar: .*found 2 of them without a pair for 1800 s.*worker b"
    ):
        shares.hung("b", "worker b", 1800.0)


def test_a_worker_that_hangs_with_nothing_in_its_hands_costs_no_shard_anything():
    shares = Shares(works(1), 1)
    for number in range(5):
        shares.hung(number, f"worker {number}", 1.0)
    assert len(shares.give("z")) == 1


def test_errors_for_people_travel_between_processes_as_they_are():
    for error in (InputError("a", expected="b", found="c", remedy="D."),
                  ObjectMissingError("a", expected="b", found="c", remedy="D.")):  # fmt: skip
        again = travelled(Failed.of(error)).at("worker 1")
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_other_errors_travel_as_their_last_line_and_the_log_has_the_rest(caplog):
    try:
        raise ZeroDivisionError("so it goes")
    except ZeroDivisionError as error:
        failed = travelled(Failed.of(error))
    assert "worker 1" in str(failed.at("worker 1"))
    assert "found ZeroDivisionError: so it goes." in str(failed.at("worker 1"))
    assert "Traceback" in caplog.text
