"""Lost acknowledgements: the server does it, the client does not hear of it.

Whatever is lost, and however often: no object is deleted, none is replaced, a writer whose object is there is told
so, one whose object is not there is not, and an outcome that nobody knows is reported as such.
"""

import itertools
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from compalign_dagster.store import AccessDeniedError, InconclusiveWriteError, ObjectChangedError, TransientStoreError
from compalign_dagster.store.bucket import BucketStore
from compalign_dagster.store.upload import Upload
from tests.support import fault_proxy as fault
from tests.support.s3_server import S3, client_of

pytestmark = [pytest.mark.system]

PART = 5 << 20
MINE, THEIRS = b"mine, all mine", b"theirs"


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr("compalign_dagster.store.bucket._PAUSE", 0.01)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A file of two parts."""
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(MINE * (1 + PART // len(MINE)))
    return path


@dataclass
class Scene:
    """A bucket, a proxy before it, and a store behind the proxy whose client gives up after two attempts."""

    s3: S3
    faults: fault.FaultProxy
    kind: type[BucketStore] = BucketStore

    def __post_init__(self) -> None:
        self.wait_for_answers(10)
        self.store.require_conditional_writes()
        self.store.require_conditional_writes(in_parts=True)
        self.faults.heal()

    def wait_for_answers(self, seconds: float) -> None:
        """Use a client that waits so long for each answer."""
        client = client_of(self.faults.endpoint, attempts=2, read_timeout=seconds)
        self.store = self.kind(self.s3.url, client, part_bytes=PART)

    def there(self, key: str = "k") -> bytes:
        """What really is in the bucket."""
        return self.s3.client.get_object(Bucket=self.s3.bucket, Key=key)["Body"].read()

    def write_theirs(self) -> None:
        """Another writer publishes the key, if it is free."""
        other = BucketStore(self.s3.url, self.s3.client)
        other.put_new("k", THEIRS)

    def let_them_come_first(self) -> None:
        """Another writer publishes the key after a large upload has seen that it is free."""
        self.faults.inject("create_upload", fault.first_do(self.write_theirs))

    def unfinished(self) -> list[str]:
        """Keys of uploads whose parts lie about."""
        found = self.s3.client.list_multipart_uploads(Bucket=self.s3.bucket)
        return [upload["Key"] for upload in found.get("Uploads", ())]

    def check_nothing_was_lost(self, mine: bytes) -> None:
        """The object is there whole, was put by one writer, and nobody replaces or has deleted it."""
        assert self.there() == mine
        assert self.faults.count("delete") == 0
        self.faults.heal()
        assert not self.store.put_new("k", THEIRS)
        assert self.there() == mine


@pytest.fixture
def scene(s3, faults):
    return Scene(s3, faults)


def no_such_upload_once_done(faults):
    """A retry of a completion that got through finds no upload any more."""
    faults.inject("complete", fault.cut_answer).inject("complete", fault.refuse(404, "NoSuchUpload"), first=None)


LOST = {
    "answer cut once": lambda faults, kind: faults.inject(kind, fault.cut_answer),
    "answer cut through all retries": lambda faults, kind: faults.inject(kind, fault.cut_answer, first=None),
    "error in place of the answer once": lambda faults, kind: faults.inject(kind, fault.lose_to_error),
    "error through all retries": lambda faults, kind: faults.inject(kind, fault.lose_to_error, first=None),
    "answer never comes": lambda faults, kind: faults.inject(kind, fault.silence(1.5), first=None),
    "cut, then a conflict": lambda faults, kind: faults.inject(kind, fault.cut_answer).inject(kind, fault.conflict),
    "cut, then denied": lambda faults, kind: faults.inject(kind, fault.cut_answer).inject(kind, fault.denied),
}


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("kind", ["put_new", "complete"])
def test_a_writer_whose_object_landed_is_told_so_whatever_became_of_the_answer(scene, large, kind, lost):
    LOST[lost](scene.faults, kind)
    if lost == "answer never comes":
        scene.wait_for_answers(1)
    source = large if kind == "complete" else MINE
    assert scene.store.put_new("k", source) is True
    assert scene.unfinished() == []
    scene.check_nothing_was_lost(large.read_bytes() if kind == "complete" else MINE)


def test_a_completion_whose_retry_finds_no_upload_is_told_that_it_landed(scene, large):
    no_such_upload_once_done(scene.faults)
    assert scene.store.put_new("k", large) is True
    scene.check_nothing_was_lost(large.read_bytes())


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("kind", ["put_new", "complete"])
def test_a_writer_who_came_second_is_told_so_whatever_became_of_the_answer(scene, large, kind, lost):
    scene.let_them_come_first() if kind == "complete" else scene.write_theirs()
    LOST[lost](scene.faults, kind)
    if lost == "answer never comes":
        scene.wait_for_answers(1)
    assert scene.store.put_new("k", large if kind == "complete" else MINE) is False
    assert scene.unfinished() == []
    scene.check_nothing_was_lost(THEIRS)


@pytest.mark.parametrize("what", [fault.slow_down, fault.broken, fault.reset, fault.conflict])
@pytest.mark.parametrize("kind", ["put_new", "complete"])
def test_a_put_that_never_arrived_is_done_again(scene, large, kind, what):
    scene.faults.inject(kind, what, first=3)  # more often than the client tries by itself, which is not after a 409
    source = large if kind == "complete" else MINE
    assert scene.store.put_new("k", source) is True
    assert scene.unfinished() == []
    scene.check_nothing_was_lost(large.read_bytes() if kind == "complete" else MINE)


@pytest.mark.parametrize("kind", ["create_upload", "part"])
def test_a_lost_answer_before_the_completion_costs_only_another_attempt(scene, large, kind):
    scene.faults.inject(kind, fault.cut_answer, first=3)
    assert scene.store.put_new("k", large) is True
    scene.check_nothing_was_lost(large.read_bytes())


@pytest.mark.parametrize("what", [fault.slow_down, fault.reset, fault.conflict])
def test_a_put_that_never_arrives_is_given_up_and_nothing_is_there(scene, what):
    scene.faults.inject("put_new", what, first=None)
    with pytest.raises(TransientStoreError, match="run again"):
        scene.store.put_new("k", MINE)
    assert scene.faults.count("put_new") == (5 if what is fault.conflict else 10)
    assert not scene.store.exists("k")
    scene.faults.heal()
    assert scene.store.put_new("k", MINE)


def test_somebody_who_writes_between_the_failure_and_the_question_is_not_taken_for_us(scene):
    scene.faults.inject("put_new", fault.broken, first=2).inject("head", fault.first_do(scene.write_theirs))
    assert scene.store.put_new("k", MINE) is False
    scene.check_nothing_was_lost(THEIRS)


def test_a_put_that_lands_after_it_was_seen_not_to_have_landed_is_ours_all_the_same(scene):
    held: list[fault.Request] = []

    def hold(request: fault.Request) -> None:
        held.append(request)
        fault.broken(request)

    scene.faults.inject("put_new", hold, first=2)  # the client's two attempts
    scene.faults.inject("put_new", fault.first_do(lambda: held[0].forward()))
    assert scene.store.put_new("k", MINE) is True
    scene.check_nothing_was_lost(MINE)


@pytest.mark.parametrize("kind", ["put_new", "complete"])
def test_a_no_to_the_only_attempt_is_believed_and_costs_no_question(scene, large, kind):
    scene.faults.inject(kind, fault.denied)
    with pytest.raises(AccessDeniedError):
        scene.store.put_new("k", large if kind == "complete" else MINE)
    looked_before = kind == "complete"
    assert (scene.faults.count(kind), scene.faults.count("head")) == (1, looked_before)
    assert scene.unfinished() == []


ABORT_LOST = {
    "answer cut once": lambda faults: faults.inject("abort", fault.cut_answer),
    "answer cut through all retries": lambda faults: faults.inject("abort", fault.cut_answer, first=None),
    "never arrives": lambda faults: faults.inject("abort", fault.reset, first=None),
    "denied": lambda faults: faults.inject("abort", fault.denied, first=None),
}


@pytest.mark.parametrize("lost", ABORT_LOST)
def test_a_lost_abort_touches_no_object_and_what_stays_is_said(scene, large, lost, caplog):
    scene.let_them_come_first()
    ABORT_LOST[lost](scene.faults)
    assert scene.store.put_new("k", large) is False
    stays = lost in ("never arrives", "denied")
    assert scene.unfinished() == (["k"] if stays else [])
    assert ("lifecycle rule" in caplog.text) or not stays
    scene.check_nothing_was_lost(THEIRS)


def test_a_large_file_whose_key_is_taken_is_not_sent(scene, large):
    scene.write_theirs()
    assert scene.store.put_new("k", large) is False
    assert scene.faults.log == [("head", "k")]


def test_the_upload_of_an_object_that_landed_is_never_aborted(scene, large):
    scene.faults.inject("complete", fault.cut_answer, first=None)
    assert scene.store.put_new("k", large)
    assert scene.faults.count("abort") == 0


def test_nothing_is_aborted_while_nobody_knows_whether_it_landed(scene, large):
    scene.faults.inject("complete", fault.cut_answer, first=None).inject("head", fault.reset, skip=1, first=None)
    with pytest.raises(InconclusiveWriteError):
        scene.store.put_new("k", large)
    assert scene.faults.count("abort") == scene.faults.count("delete") == 0
    scene.check_nothing_was_lost(large.read_bytes())


@pytest.mark.parametrize("silent", [fault.reset, fault.denied, fault.broken])
@pytest.mark.parametrize("landed", [True, False])
def test_an_outcome_that_cannot_be_found_out_is_said_and_settled_by_running_again(scene, silent, landed):
    scene.faults.inject("put_new", fault.cut_answer if landed else fault.reset, first=None)
    scene.faults.inject("head", silent, first=None)
    with pytest.raises(InconclusiveWriteError, match=r"Run again.*never replaces"):
        scene.store.put_new("k", MINE)
    scene.faults.heal()
    assert scene.store.put_new("k", MINE) is not landed
    scene.check_nothing_was_lost(MINE)


def race(scene: Scene, writers: int = 4, keys: int = 25) -> None:
    """Writers race for many keys while every third answer to a put is lost: one winner each, who knows it."""
    turn, lock = itertools.count(), threading.Lock()

    def sometimes(request: fault.Request) -> None:
        with lock:
            lose = next(turn) % 3 == 0
        (fault.cut_answer if lose else fault.pass_on)(request)

    scene.faults.inject("put_new", sometimes, first=None)
    won: dict[str, list[bytes]] = {f"r/{number}": [] for number in range(keys)}

    def write(name: bytes) -> None:
        for key, winners in won.items():
            if scene.store.put_new(key, name):
                winners.append(name)

    threads = [threading.Thread(target=write, args=(f"writer {at}".encode(),)) for at in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, winners in won.items():
        assert winners == [scene.there(key)], "a false conflict or a double publish"


def test_of_racing_writers_with_lost_answers_exactly_one_wins_each_key_and_knows_it(scene):
    race(scene)


class Hasty(BucketStore):
    """The planted bug: 412 means that somebody else has the key."""

    def _owner(self, place, url, failure):
        return ""


class Tidy(BucketStore):
    """The planted bug: after a failure, clean up what may lie there."""

    def _owner(self, place, url, failure):
        self.client.delete_object(**place)


class Careless(BucketStore):
    """The planted bug: the completion of a multipart upload is not conditional."""

    def put_new(self, key, source):
        place, _ = self._place(key)
        complete = self.client.complete_multipart_upload
        self.client.complete_multipart_upload = lambda IfNoneMatch, **request: complete(**request)  # noqa: N803
        Upload(self.client, place, "id", PART).send(source)
        return True


def test_the_planted_bug_of_believing_412_is_a_false_conflict(s3, faults):
    scene = Scene(s3, faults, Hasty)
    faults.inject("put_new", fault.cut_answer)
    assert scene.store.put_new("k", MINE) is False
    assert scene.there() == MINE
    with pytest.raises(AssertionError, match="false conflict"):
        race(scene)


def test_the_planted_bug_of_cleaning_up_deletes_somebodys_object(s3, faults):
    scene = Scene(s3, faults, Tidy)
    scene.write_theirs()
    scene.store.put_new("k", MINE)
    with pytest.raises(AssertionError):
        scene.check_nothing_was_lost(THEIRS)


def test_the_planted_bug_of_an_unconditional_completion_replaces_an_object(s3, faults, large):
    scene = Scene(s3, faults, Careless)
    scene.write_theirs()
    scene.store.put_new("k", large)
    with pytest.raises(AssertionError):
        scene.check_nothing_was_lost(THEIRS)


@pytest.mark.parametrize("lost", [fault.cut_answer, fault.lose_to_error])
def test_a_replacement_that_landed_is_told_so_when_its_answer_was_lost(scene, lost):
    scene.store.put_new("k", THEIRS)
    stamp = scene.store.stat("k").stamp
    scene.faults.inject("put", lost)
    scene.store.replace("k", MINE, stamp=stamp)
    assert scene.there() == MINE
    with pytest.raises(ObjectChangedError):
        scene.store.replace("k", THEIRS, stamp=stamp)
    assert scene.there() == MINE
