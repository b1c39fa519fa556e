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
