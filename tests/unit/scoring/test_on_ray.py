"""How actors that die are replaced, without a cluster: a Ray whose actors do what a test says."""

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from compalign_dagster.compute import Needs
from compalign_dagster.errors import CompalignError
from compalign_dagster.scoring import on_ray
from compalign_dagster.scoring.config import ScoringConfig
from compalign_dagster.scoring.on_ray import Actor
from tests.support.scoring import REFERENCE, prepare, works_of
from tests.unit.scoring.test_sharing import works


class Hanging:
    """Actors that load, take shards and never come further; each answers how far it is, at nothing."""

    exceptions = SimpleNamespace(RayError=ZeroDivisionError)

    def __init__(self) -> None:
        self.killed = 0

    def remote(self, _: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: Remote(True)))

    def wait(self, due: list["Call"], timeout: float) -> tuple[list["Call"], list["Call"]]:
        time.sleep(0.01)
        return [call for call in due if call.asked != "score"][:1], []

    def get(self, call: "Call") -> Any:
        return ([], None, 0) if call.asked == "look" else "cpu, process 1 on here"

    def kill(self, actor: "Remote") -> None:
        self.killed += 1


class Died(Exception):  # noqa: N818
    """What Ray raises for the answer of a dead actor."""


@dataclass(frozen=True)
class Call:
    asked: str
    actor: "Remote"


class Remote:
    """An actor that publishes one of the shards it is given and dies; or dies while it loads."""

    def __init__(self, loads: bool) -> None:
        self.loads, self.given = loads, []

    def __getattr__(self, asked: str) -> Any:
        def remote(*arguments: Any) -> Call:
            if asked == "score":
                self.given = arguments[0][:1]
            return Call(asked, self)

        return SimpleNamespace(remote=remote)

    def answer(self, asked: str) -> Any:
        if asked == "look":
            told, self.given = [work.key for work in self.given], []
            return told, None, 0
        if asked == "score" or not self.loads:
            raise Died("so it goes")
        return "cpu, process 1 on here"


class Ray:
    """As much of Ray as `_Crew` uses; an actor dies once it was asked what it has finished."""

    exceptions = SimpleNamespace(RayError=Died)

    def __init__(self, loads: bool = True) -> None:
        self.loads = loads

    def remote(self, _: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: Remote(self.loads)))

    def wait(self, due: list[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        ready = [call for call in due if call.asked == "look" or not call.actor.given]
        return ready[:1], []

    def get(self, call: Call) -> Any:
        return call.actor.answer(call.asked)

    def kill(self, actor: Remote) -> None:
        assert isinstance(actor, Remote)


def finished(ray: Ray, shards: int) -> list[str]:
    crew, done = on_ray._Crew(ray, works(shards), ScoringConfig(), Needs(), 1), []
    while crew.shares.unfinished:
        done += [work.shard for work in crew.turn(lambda key, pairs: None)]
    return done


def test_actors_may_die_as_long_as_shards_are_finished(monkeypatch):
    monkeypatch.setattr(on_ray, "_SECONDS_BETWEEN_LOOKS", 0.0)
    assert finished(Ray(), 20) == [work.shard for work in works(20)]


def test_actors_that_die_one_after_the_other_end_the_step():
    with pytest.raises(CompalignError, match="4 dead since a shard was finished, the last one: so it goes"):
        finished(Ray(loads=False), 2)


def turned(crew: on_ray._Crew, turns: int) -> None:
    for _ in range(turns):
        list(crew.turn(lambda key, pairs: None))


def test_an_actor_that_hangs_is_replaced_once_and_then_its_shard_is_named(monkeypatch):
    monkeypatch.setattr(on_ray, "_SECONDS_BETWEEN_LOOKS", 0.0)
    ray = Hanging()
    crew = on_ray._Crew(ray, works(1), ScoringConfig(), Needs(), 1, 0.1)
    with pytest.raises(CompalignError, match=r"shard web/0\.tar: .* 2 of them without a pair"):
        turned(crew, 500)
    assert ray.killed == 2


def test_the_planted_bug_of_taking_an_answer_for_progress_never_notices_it(monkeypatch):
    monkeypatch.setattr(on_ray, "_SECONDS_BETWEEN_LOOKS", 0.0)
    crew = on_ray._Crew(Hanging(), works(1), ScoringConfig(), Needs(), 1, 0.1)
    for _ in range(50):
        turned(crew, 1)
        for member in crew._members:
            member.moved = time.monotonic()
    assert crew.shares.unfinished == 1


class Reading(Hanging):
    """Actors that read the captions of a large shard: no pair is done, and they come further."""

    def __init__(self, step: int = 1) -> None:
        super().__init__()
        self.beats, self.step = 0, step

    def get(self, call: "Call") -> Any:
        self.beats += self.step
        return ([], ("k", 0), self.beats) if call.asked == "look" else super().get(call)


def looked_at(ray: Reading) -> on_ray._Crew:
    """A crew that has looked at its actor for longer than one may stand still."""
    crew, until = on_ray._Crew(ray, works(1), ScoringConfig(), Needs(), 1, 0.2), time.monotonic() + 0.5
    while time.monotonic() < until:
        turned(crew, 1)
    return crew


def test_an_actor_that_comes_further_without_a_pair_does_not_hang(monkeypatch):
    monkeypatch.setattr(on_ray, "_SECONDS_BETWEEN_LOOKS", 0.0)
    ray = Reading()
    assert looked_at(ray).shares.unfinished == 1
    assert ray.killed == 0


def test_the_planted_bug_of_looking_at_pairs_alone_ends_it(monkeypatch):
    monkeypatch.setattr(on_ray, "_SECONDS_BETWEEN_LOOKS", 0.0)
    with pytest.raises(CompalignError, match="without a pair"):
        looked_at(Reading(step=0))


def test_what_an_actor_has_finished_is_told_once_and_is_not_what_it_is_at(tmp_path):
    found = works_of(prepare(tmp_path / "home"))
    actor = Actor(found[0].model, found[0], REFERENCE)
    assert actor.load().startswith("cpu, process ")
    assert actor.score(found) is None
    keys, at, beats = actor.look()
    assert (keys, at) == ([work.key for work in found], None)
    assert beats >= len(found)
    assert actor.look() == ([], None, beats)
