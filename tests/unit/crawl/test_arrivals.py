"""Ticks of arrival: what is found, what waits, what is never taken for a removal."""

import json
import os
from pathlib import Path

import pytest

from compalign_dagster.crawl import arrivals, landed, look
from compalign_dagster.crawl.batches import BatchSize, seal
from compalign_dagster.crawl.cursor import Cursor
from compalign_dagster.crawl.landed import Complete
from compalign_dagster.crawl.look import Rules
from compalign_dagster.errors import InputError
from compalign_dagster.store import AccessDeniedError, LocalStore, TransientStoreError
from tests.support.arrivals import STEPS, Arrivals
from tests.support.memory_store import MemoryStore


def said(batches) -> list[list[str]]:
    """Of each batch its shards: "+" added, "~" superseded, "-" removed."""
    return [
        [f"+{item.shard}" for item in batch.added]
        + [f"~{item.shard}" for item in batch.superseded]
        + [f"-{name}" for name in batch.removed]
        for batch in batches
    ]


@pytest.fixture
def bucket() -> Arrivals:
    return Arrivals(MemoryStore("memory://store"), MemoryStore("memory://landing"))


class Disk:
    """A landing folder on a disk whose files are written at the times of the ticks."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self.folder = folder / "landing"
        self.folder.mkdir()
        self.arrivals = Arrivals(LocalStore(folder / "store"), LocalStore(self.folder), rules)

    def write(self, name: str, data: bytes = b"x", ago: float = 0.0) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (self.arrivals.now - ago,) * 2)


@pytest.fixture
def disk(tmp_path) -> Disk:
    return Disk(tmp_path, Rules(complete=Complete(settle_seconds=60), patience=300))


class TestWhatIsFound:
    def test_shards_are_sealed_and_registered_in_one_tick_and_then_all_is_quiet(self, bucket):
        bucket.landing.put_many(["cc3m/1.tar", "cc3m/0.tar", "0.tar", "laion/0.tgz", "cc3m/0.json"])
        assert said(bucket.tick().register) == [["+0.tar", "+cc3m/0.tar", "+cc3m/1.tar", "+laion/0.tgz"]]
        assert bucket.tick().register == ()
        assert "nothing new" in bucket.tick().message

    def test_what_sorts_behind_the_last_key_is_found_without_listing_the_rest(self, bucket):
        bucket.rules = Rules(sweep=3600)
        bucket.landing.put_many([f"cc3m/{at:05d}.tar" for at in range(3000)])
        bucket.until_quiet()
        bucket.landing.asked.clear()
        bucket.landing.put("cc3m/90000.tar")
        bucket.landing.put("laion/0.tar")
        bucket.landing.put("z.tar")
        assert said(bucket.tick().register) == [["+cc3m/90000.tar", "+laion/0.tar", "+z.tar"]]
        assert bucket.landing.asked["listed"] < 20

    def test_what_sorts_before_the_last_key_is_found_by_the_sweep(self, bucket):
        bucket.rules = Rules(sweep=600)
        bucket.landing.put("cc3m/5.tar")
        bucket.until_quiet()
        bucket.landing.put("cc3m/1.tar")
        assert bucket.tick().register == ()
        assert said(bucket.tick(600).register) == [["+cc3m/1.tar"]]

    def test_other_bytes_supersede_a_missing_shard_is_removed_and_one_that_comes_back_is_added(self, bucket):
        bucket.landing.put_many(["a/0.tar", "a/1.tar", "a/2.tar"])
        bucket.tick()
        bucket.landing.put("a/1.tar", b"other")
        bucket.landing.delete("a/2.tar")
        assert said(bucket.tick().register) == [["~a/1.tar", "-a/2.tar"]]
        bucket.landing.put("a/2.tar")
        assert said(bucket.tick().register) == [["+a/2.tar"]]
        bucket.check_history()

    def test_a_sweep_goes_on_where_the_budget_of_a_tick_ended_it(self, bucket):
        bucket.landing.put_many([f"a/{at:05d}.tar" for at in range(5000)])
        bucket.until_quiet()
        bucket.landing.delete("a/04500.tar")
        bucket.landing.put("a/00001.tar", b"other")
        bucket.look = 100.0  # every look at the clock finds the budget spent: one slice a tick
        found = []
        for _ in range(12):
            bucket.landing.asked.clear()
            found += said(bucket.tick().register)
            assert bucket.landing.asked["listed"] < 1100
        assert found == [["~a/00001.tar"], ["-a/04500.tar"]]

    def test_a_mass_removal_is_confirmed_in_slices(self, bucket, monkeypatch):
        monkeypatch.setattr(look, "_SLICE", 50)
        bucket.landing.put_many([f"a/{at:04d}.tar" for at in range(1000)])
        bucket.until_quiet()
        for at in range(999):
            bucket.landing.delete(f"a/{at:04d}.tar")
        bucket.look = 100.0
        for _ in range(40):
            bucket.landing.asked.clear()
            bucket.tick()
            assert bucket.landing.asked["exists"] <= 50
        assert set(bucket.live) == {"a/0999.tar"}
        bucket.check_history()

    def test_a_name_behind_the_last_character_stops_no_listing(self, bucket):
        names = ["a/0.tar", "a/\U0010ffffz.tar", "a/\U0010ffff\U0010ffff/0.tar", "b.tar"]
        bucket.landing.put_many(names)
        assert [item.key for item in landed.at_root(bucket.landing) if item.size >= 0] == ["b.tar"]
        bucket.tick()
        assert set(bucket.live) == set(names)

    def test_thousands_of_folders_are_passed_within_the_time_of_a_tick(self, bucket):
        """Each listing takes 50 ms, as in a far bucket; the daemon kills a tick after 60 s."""
        bucket.landing.put_many([f"{number:05}/0.tar" for number in range(3000)] + ["zz.tar"])
        bucket.rules = Rules(size=BatchSize(shards=1000))
        took = []

        def ticks(count):
            for _ in range(count):
                before, bucket.now = bucket.landing.asked["list"], bucket.now + 30
                clock = lambda before=before: (bucket.landing.asked["list"] - before) * 0.05  # noqa: E731
                ticked = arrivals.tick(
                    bucket.store, bucket.landing, bucket.cursor, [], bucket.rules, now=bucket.now, elapsed=clock
                )
                bucket.cursor = ticked.cursor
                took.append(clock())

        ticks(8)
        assert len(bucket.live) == 3001
        bucket.landing.delete("zz.tar")
        ticks(2)
        assert len(bucket.live) == 3000, "so many folders are no lost mount"
        assert max(took) < 30

    def test_names_that_no_store_keeps_are_told_and_left(self, bucket):
        bucket.landing.put_many(["a//b.tar", "a/../c.tar", "a/\udcff.tar", "a\\d.tar", "a/ok.tar"])
        ticked = bucket.tick()
        assert said(ticked.register) == [["+a/ok.tar"]]
        assert "4" in "".join(ticked.warnings) or "more" in "".join(ticked.warnings)
        ticked.message.encode()


class TestBatches:
    def test_a_batch_that_is_not_full_waits_for_more_and_no_longer_than_it_may(self, bucket):
        bucket.rules = Rules(size=BatchSize(shards=3), wait=600)
        bucket.landing.put("a/1.tar")
        assert bucket.tick().register == ()
        bucket.landing.put("a/2.tar")
        assert "2 changes wait" in bucket.tick(300).message
        assert said(bucket.tick(299).register) == []
        assert said(bucket.tick(1).register) == [["+a/1.tar", "+a/2.tar"]]

    def test_a_full_batch_is_sealed_at_once_and_the_rest_waits_on(self, bucket):
        bucket.rules = Rules(size=BatchSize(shards=3), wait=600)
        bucket.landing.put_many([f"a/{at}.tar" for at in range(7)])
        assert [len(batch.added) for batch in bucket.tick().register] == [3, 3]
        bucket.landing.put_many(["a/7.tar", "a/8.tar"])
        assert said(bucket.tick().register) == [["+a/6.tar", "+a/7.tar", "+a/8.tar"]]

    def test_pairs_are_counted_by_img2dataset_or_estimated_from_bytes(self, bucket):
        bucket.rules = Rules(size=BatchSize(pairs=10), wait=600)
        for name, body in (("0", b'{"successes": 6}'), ("1", b'{"successes": 6}'), ("2", b'{"successes": 4}')):
            bucket.landing.put(f"a/{name}.tar")
            bucket.landing.put(f"a/{name}_stats.json", body)
        bucket.landing.put("b/0.tar", bytes(landed.PAIR_BYTES * 10))
        assert said(bucket.tick().register) == [["+a/0.tar"], ["+a/1.tar", "+a/2.tar"], ["+b/0.tar"]]

    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b"{", b'{"successes": -1}', b'{"successes": true}', b'{"successes": 1e99}', b"[" * 100_000,
         b'{"successes": ' + b"9" * 10_000 + b"}", b"\xff\xfe", b'{"successes": "5"}', b" " * (2 << 20) + b"{}"],
    )  # fmt: skip
    def test_a_statistics_file_that_is_not_one_is_passed_over(self, bucket, body):
        bucket.landing.put("a/0.tar")
        bucket.landing.put("a/0_stats.json", body)
        assert said(bucket.tick().register) == [["+a/0.tar"]]

    def test_a_removal_waits_with_the_batch_and_is_not_forgotten(self, bucket):
        bucket.landing.put_many(["a/0.tar", "a/1.tar"])
        bucket.tick()
        bucket.rules = Rules(wait=600, sweep=60)
        bucket.landing.delete("a/0.tar")
        found = [said(bucket.tick().register) for _ in range(25)]
        assert [batches for batches in found if batches] == [[["-a/0.tar"]]]

    def test_no_tick_seals_or_registers_more_than_it_may(self, bucket):
        bucket.rules = Rules(size=BatchSize(shards=2), batches=3)
        bucket.landing.put_many([f"a/{at:02d}.tar" for at in range(20)])
        sizes = [len(bucket.tick().register) for _ in range(6)]
        assert sizes == [3, 3, 3, 1, 0, 0]
        assert len(bucket.live) == 20

    def test_what_was_sealed_elsewhere_is_registered_by_and_by(self, bucket):
        bucket.landing.put_many([f"a/{at:02d}.tar" for at in range(10)])
        seal(bucket.store, bucket.landing, max_shards=1)
        bucket.rules = Rules(batches=4)
        assert [[b.key[-2:] for b in bucket.tick().register] for _ in range(4)] == [
            ["01", "02", "03", "04"], ["05", "06", "07", "08"], ["09", "10"], [],
        ]  # fmt: skip

    def test_a_sealer_that_was_overtaken_seals_nothing_and_finds_it_again(self, bucket, monkeypatch):
        bucket.landing.put("a/0.tar")
        real = MemoryStore.folders

        def folders(landing, prefix=""):
            seal(bucket.store, landing, max_shards=9)  # somebody runs land_batch while the tick looks
            return real(landing, prefix)

        monkeypatch.setattr(MemoryStore, "folders", folders)
        assert bucket.tick().register == ()
        monkeypatch.undo()
        assert said(bucket.tick().register) == [["+a/0.tar"]]
        bucket.check_history()


class TestIncompleteShards:
    def test_a_file_that_is_being_written_waits_and_what_sorts_behind_it_does_not(self, disk):
        disk.write("a/1.tar")
        disk.write("a/2.tar", ago=100)
        assert said(disk.arrivals.tick(10).register) == [["+a/2.tar"]]
        assert "1 shards are not complete" in disk.arrivals.tick(10).message
        assert said(disk.arrivals.tick(60).register) == [["+a/1.tar"]]

    def test_the_fast_pass_never_moves_past_an_incomplete_shard(self, disk):
        disk.arrivals.rules = Rules(complete=Complete(settle_seconds=60), sweep=1e9)
        disk.arrivals.tick()
        for at in (1, 3, 5):
            disk.write(f"a/{at}.tar", ago=100 if at > 1 else 0)
        assert said(disk.arrivals.tick(1).register) == [["+a/3.tar", "+a/5.tar"]]
        assert said(disk.arrivals.tick(61).register) == [["+a/1.tar"]]

    def test_the_planted_bug_of_a_position_that_moves_past_turns_this_red(self, disk, monkeypatch):
        monkeypatch.setattr(look.Reach, "position", lambda reach, sealed: reach.end)
        with pytest.raises(AssertionError):
            self.test_the_fast_pass_never_moves_past_an_incomplete_shard(disk)

    def test_one_that_stays_incomplete_is_set_aside_with_a_warning_and_the_sweep_comes_back(self, disk):
        disk.write("a/9.tar", ago=100)
        disk.arrivals.tick()
        told = []
        for _ in range(20):
            disk.write("a/stuck.tar")
            told.append(disk.arrivals.tick(30).warnings)
        assert told[9] == ()
        assert "a/stuck.tar" in told[-1][0]
        assert "a/stuck.tar" in Cursor.parse(disk.arrivals.cursor).waiting
        assert Cursor.parse(disk.arrivals.cursor).positions["a/"] == "a/stuck.tar"
        assert said(disk.arrivals.tick(60).register) == [["+a/stuck.tar"]]
        assert Cursor.parse(disk.arrivals.cursor).waiting == {}

    def test_an_incomplete_shard_that_goes_away_is_forgotten(self, disk):
        disk.write("a/9.tar", ago=100)
        disk.write("a/stuck.tar")
        disk.arrivals.tick(1)
        (disk.folder / "a/stuck.tar").unlink()
        disk.arrivals.tick(1)
        assert Cursor.parse(disk.arrivals.cursor).waiting == {}

    def test_a_live_shard_that_is_being_overwritten_stays_live_until_it_is_complete(self, disk):
        disk.write("a/1.tar", ago=100)
        disk.arrivals.tick()
        disk.write("a/1.tar", b"longer")
        assert disk.arrivals.tick(1).register == ()
        assert disk.arrivals.live["a/1.tar"][0] == 1
        assert said(disk.arrivals.tick(60).register) == [["~a/1.tar"]]

    def test_a_link_in_a_circle_a_pipe_and_the_longest_name_stop_nothing(self, disk):
        longest = "a/" + "x" * 251 + ".tar"  # no room for the name of its statistics
        for name in ("a/0.tar", longest):
            disk.write(name, ago=90)
        (disk.folder / "a" / "circle.tar").symlink_to("circle.tar")
        (disk.folder / "a" / "nothing.tar").symlink_to("nothing at all")
        os.mkfifo(disk.folder / "a" / "pipe.tar")
        disk.arrivals.tick()
        assert set(disk.arrivals.live) == {"a/0.tar", longest}

    def test_a_clock_that_runs_ahead_does_not_hold_a_shard_for_ever(self, disk):
        disk.write("a/1.tar", ago=-30 * 86400)
        assert said(disk.arrivals.tick().register) == [["+a/1.tar"]]

    def test_in_a_bucket_a_shard_waits_for_its_statistics_when_that_is_the_sign(self, bucket):
        bucket.rules = Rules(complete=Complete(mark="stats"))
        bucket.landing.put_many(["a/0.tar", "a/1.tar"])
        bucket.landing.put("a/1_stats.json", b"{}")
        assert said(bucket.tick().register) == [["+a/1.tar"]]
        bucket.landing.put("a/0_stats.json", b"{}")
        assert said(bucket.tick().register) == [["+a/0.tar"]]

    def test_in_a_bucket_a_folder_waits_for_success_when_that_is_the_sign(self, bucket):
        bucket.rules = Rules(complete=Complete(mark="success"))
        bucket.landing.put_many(["a/0.tar", "b/0.tar", "0.tar", "b/_SUCCESS"])
        assert said(bucket.tick().register) == [["+b/0.tar"]]
        bucket.landing.put_many(["a/_SUCCESS", "_SUCCESS"])
        assert said(bucket.tick().register) == [["+0.tar", "+a/0.tar"]]

    def test_more_incomplete_shards_than_the_cursor_holds_are_all_sealed_in_the_end(self, bucket):
        bucket.rules = Rules(complete=Complete(mark="success"), patience=60)
        bucket.landing.put_many([f"a/{at:04d}.tar" for at in range(1500)])
        for _ in range(5):
            bucket.tick()
        assert len(bucket.cursor) < 20_000
        bucket.landing.put("a/_SUCCESS")
        bucket.until_quiet()
        assert len(bucket.live) == 1500


class TestLostMounts:
    @pytest.fixture
    def lost(self, bucket) -> Arrivals:
        bucket.landing.put_many(["cc3m/0.tar", "cc3m/1.tar", "laion/0.tar"])
        bucket.until_quiet()
        for name in ("cc3m/0.tar", "cc3m/1.tar"):
            bucket.landing.delete(name)
        return bucket

    def test_a_corpus_that_vanished_whole_turns_ticks_red_and_stays_in_the_crawl(self, lost):
        for _ in range(5):
            with pytest.raises(InputError, match=r"cc3m, found no shard at all.*remove_corpora"):
                lost.tick()
        assert set(lost.live) == {"cc3m/0.tar", "cc3m/1.tar", "laion/0.tar"}

    def test_it_holds_back_only_itself(self, lost):
        lost.landing.put("laion/1.tar")
        ticked = lost.tick()
        assert said(ticked.register) == [["+laion/1.tar"]]
        assert "cc3m" in ticked.message

    def test_a_working_tick_comes_between_red_ones_so_that_the_sweep_goes_on(self, lost):
        lost.landing.put("laion/0.tar", b"other")
        lost.landing.put_many([f"laion/{at:05d}.tar" for at in range(3000)])
        lost.look = 100.0
        red = 0
        for _ in range(120):
            try:
                lost.tick()
            except InputError:
                red += 1
        assert red > 60
        assert lost.live["laion/0.tar"][0] == 5
        assert len(lost.live) == 3003

    def test_a_mount_that_comes_back_ends_it(self, lost):
        with pytest.raises(InputError):
            lost.tick()
        lost.landing.put_many(["cc3m/0.tar", "cc3m/1.tar"])
        assert lost.tick().warnings == ()

    def test_a_landing_folder_that_vanished_is_every_corpus_lost(self, disk):
        disk.write("a/0.tar", ago=100)
        disk.write("0.tar", ago=100)
        disk.arrivals.tick()
        disk.folder.rename(disk.folder.with_name("gone"))
        with pytest.raises(InputError, match="a, crawl"):
            disk.arrivals.tick()

    def test_the_planted_bug_of_no_guard_would_empty_the_corpus(self, lost, monkeypatch):
        monkeypatch.setattr(landed, "is_lost", lambda landing, corpus: False)
        lost.tick()
        assert set(lost.live) == {"laion/0.tar"}

    def test_a_shard_that_the_listing_missed_is_asked_for_before_it_is_removed(self, lost, monkeypatch):
        lost.landing.put_many(["cc3m/0.tar", "cc3m/1.tar"])
        whole = MemoryStore.list
        monkeypatch.setattr(
            MemoryStore, "list", lambda *at, **to: (x for x in whole(*at, **to) if x.key != "cc3m/1.tar")
        )
        lost.until_quiet()
        assert "cc3m/1.tar" in lost.live

    def test_the_planted_bug_of_believing_the_listing_would_remove_it(self, lost, monkeypatch):
        monkeypatch.setattr(landed, "gone", lambda landing, names: list(names))
        with pytest.raises(AssertionError):
            self.test_a_shard_that_the_listing_missed_is_asked_for_before_it_is_removed(lost, monkeypatch)

    def test_after_a_removal_on_purpose_all_is_quiet(self, lost):
        seal(lost.store, lost.landing, max_shards=100, remove_corpora=["cc3m"])
        lost.until_quiet()
        assert set(lost.live) == {"laion/0.tar"}


class TestNoAccess:
    @pytest.mark.parametrize("kind", [AccessDeniedError, TransientStoreError])
    def test_two_ticks_warn_and_name_the_object_and_from_the_third_on_they_fail(self, bucket, kind):
        bucket.landing.put("a/0.tar")
        refusal = kind("s3://crawl/landing", expected="to be let in", found="403", remedy="Check the key.")
        bucket.landing.refuse = refusal
        for count in (1, 2):
            [warning] = bucket.tick().warnings
            assert "s3://crawl/landing" in warning and f"failure {count}" in warning
        for _ in range(3):
            with pytest.raises(kind):
                bucket.tick()
        bucket.landing.refuse = None
        assert said(bucket.tick().register) == [["+a/0.tar"]]
        bucket.landing.refuse = refusal
        assert "failure 1" in bucket.tick().message


class TestCursor:
    @pytest.mark.parametrize(
        "text",
        ["", "batch-00001", "{", "null", "[]", '{"version": 0}', '{"version": 2, "more": 1}', "\0" * 9,
         '{"version": 1, "swept": NaN}', '{"version": 1, "positions": {"a/": 7}}', '{"version": 1, "extra": 1}'],
    )  # fmt: skip
    def test_junk_or_another_version_starts_afresh_and_registers_nothing_twice(self, bucket, text, caplog):
        bucket.landing.put_many(["a/0.tar", "b/0.tar"])
        bucket.until_quiet()
        bucket.cursor = text
        assert bucket.tick().register == ()
        assert not text or "starting afresh" in caplog.text
        assert Cursor.parse(bucket.cursor).version == 1
        bucket.check_history()

    def test_times_from_the_future_hold_nothing_for_ever(self, bucket):
        bucket.rules = Rules(wait=600, sweep=600, complete=Complete(mark="stats"))
        late = {"swept": 9e12, "since": 9e12, "saved": 9e12, "waiting": {"a/0.tar": 9e12}}
        bucket.cursor = Cursor(**late).dump()
        bucket.landing.put_many(["a/0.tar", "a/0_stats.json"])
        bucket.tick()
        assert said(bucket.tick(600).register) == [["+a/0.tar"]]

    def test_it_stays_small_with_many_folders_and_long_names(self, bucket):
        bucket.landing.put_many([f"{at:04d}-{'x' * 400}/{'y' * 400}.tar" for at in range(1000)])
        bucket.until_quiet()
        assert len(bucket.live) == 1000
        assert len(bucket.cursor) < 101_000
        bucket.landing.put("0500-new/0.tar")
        bucket.until_quiet()
        assert len(bucket.live) == 1001

    def test_it_holds_nothing_that_is_pending(self, bucket):
        bucket.rules = Rules(wait=600)
        bucket.landing.put_many([f"a/{at:02d}.tar" for at in range(50)])
        bucket.tick()
        assert "a/01.tar" not in bucket.cursor
        bucket.cursor = None
        bucket.tick()
        assert len(bucket.tick(600).register[0].added) == 50
        assert json.loads(bucket.cursor)["since"] is None


@pytest.mark.parametrize("stored", range(len(STEPS)))
def test_a_tick_that_the_daemon_did_not_survive_is_repeated_without_harm(bucket, stored):
    bucket.rules = Rules(size=BatchSize(shards=1), batches=2)
    bucket.landing.put_many([f"a/{at}.tar" for at in range(5)])
    for _ in range(8):
        bucket.tick(stored=stored)
        bucket.tick()
    bucket.check_history()
    assert bucket.partitions == [batch.key for batch in bucket.log]
    assert len(bucket.live) == 5
