import os
from multiprocessing import Pipe

from compalign_dagster.scoring import devices
from compalign_dagster.scoring.config import ScoringConfig, decoders
from compalign_dagster.scoring.sharing import Failed
from tests.unit.scoring.test_sharing import works


def served(monkeypatch, error, *, parent=True):
    """What a worker says whose model cannot be loaded."""

    def broken(*_):
        raise error

    monkeypatch.setattr(devices, "load_scorer", broken)
    monkeypatch.setattr(devices.signal, "signal", lambda *_: None)
    ours, theirs = Pipe()
    if not parent:
        ours.close()
    devices._serve(theirs, works(1)[0], ScoringConfig())
    theirs.close()
    return ours.recv() if parent else None


def test_a_connection_to_the_store_that_breaks_is_said_and_not_taken_for_a_parent_that_is_gone(monkeypatch):
    for error in (ConnectionResetError("by the store"), EOFError("of a file")):
        word, *rest = served(monkeypatch, error)
        assert word == "error"
        assert str(error) in Failed(*rest).text


def test_a_worker_whose_parent_is_gone_says_nothing(monkeypatch):
    served(monkeypatch, EOFError(), parent=False)


def test_processes_share_the_cores_to_compute_on_a_cpu_and_to_decode_beside_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    on_cpu = devices._sharing_cores([ScoringConfig(device="cpu")] * 4)
    assert [(config.threads, config.decoders) for config in on_cpu] == [(8, None)] * 4
    on_gpus = devices._sharing_cores([ScoringConfig(device=f"cuda:{at}") for at in range(4)])
    assert [(config.threads, config.decoders) for config in on_gpus] == [(None, 8)] * 4
    assert decoders("cpu", 32) == 2
    assert (decoders("cuda", 1), decoders("cuda", 64)) == (2, 8)


class Process:
    """A worker's process that does not do anything."""

    exitcode = 0

    def kill(self):
        self.killed = True

    def join(self, *_):
        pass

    def terminate(self):
        pass


def ended_as_hung(monkeypatch, *, said):
    """Whether a worker is ended whose last word was read long ago, and who has `said` since then what nobody read."""
    ours, theirs = Pipe()
    worker = devices._Worker("worker", Process(), ours)
    worker.heard -= 1000
    (work,) = works(1)
    for word in said:
        theirs.send(word)
    monkeypatch.setattr(devices, "_start", lambda *_: [worker])
    monkeypatch.setattr(devices, "published", lambda *_: "there")
    monkeypatch.setattr(devices, "_feed", lambda workers, shares: workers and shares.give(workers[0]))
    found = devices.score_on_devices([work], [ScoringConfig(device="cpu")], object(), lambda *_: None, stall_seconds=9)
    monkeypatch.setattr(devices.Shares, "hung", lambda self, *_: (_ for _ in ()).throw(TimeoutError))
    try:
        return [item for item, _ in found] != [work]
    except TimeoutError:
        return True


def test_a_worker_whose_words_wait_to_be_read_does_not_hang_however_long_its_parent_was_frozen(monkeypatch):
    assert not ended_as_hung(monkeypatch, said=[("pairs", "k", 1), ("done", works(1)[0].key)])


def test_a_worker_that_has_said_nothing_since_is_ended(monkeypatch):
    assert ended_as_hung(monkeypatch, said=[])
