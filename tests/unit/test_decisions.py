"""Decided facts: contiguous versions, one winner each, nothing overwritten."""

import threading

import pytest

from compalign_dagster import decisions
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Listed, LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def test_nothing_is_decided_at_first(store):
    assert decisions.current(store, "policy") is None
    assert decisions.history(store, "policy") == []


def test_versions_count_from_one_and_the_newest_is_current(store):
    first = decisions.decide(store, "policy", {"keep": "0.3"}, after=0)
    second = decisions.decide(store, "policy", {"keep": "0.1"}, after=1)
    assert (first.version, second.version) == (1, 2)
    assert decisions.current(store, "policy") == second
    assert decisions.history(store, "policy") == [first, second]
    assert first.decided.endswith("+00:00")


def test_order_holds_beyond_nine_versions(store):
    for version in range(12):
        decisions.decide(store, "policy", {"at": version}, after=version)
    assert [decision.value["at"] for decision in decisions.history(store, "policy")] == list(range(12))
    assert decisions.current(store, "policy").version == 12


def test_facts_whose_names_start_alike_do_not_mix(store):
    decisions.decide(store, "policy", {"of": "policy"}, after=0)
    decisions.decide(store, "policy-b", {"of": "policy-b"}, after=0)
    assert [decision.value["of"] for decision in decisions.history(store, "policy")] == ["policy"]


def test_deciding_after_an_old_version_fails_and_changes_nothing(store):
    decisions.decide(store, "policy", {"keep": 1}, after=0)
    with pytest.raises(CompalignError, match="decide again"):
        decisions.decide(store, "policy", {"keep": 2}, after=0)
    assert decisions.current(store, "policy").value == {"keep": 1}


def test_of_many_who_decide_at_once_exactly_one_wins(store):
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def decide(who: int) -> None:
        start.wait()
        try:
            decisions.decide(store, "model", {"who": who}, after=0)
            outcomes.append("won")
        except CompalignError:
            outcomes.append("lost")

    threads = [threading.Thread(target=decide, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
    assert len(decisions.history(store, "model")) == 1


class CountingStore(LocalStore):
    """Counts whole reads."""

    reads = 0

    def read(self, key):
        self.reads += 1
        return super().read(key)


def test_a_long_history_is_read_once_and_then_only_what_is_new(tmp_path):
    store = CountingStore(tmp_path / "store")
    for version in range(50):
        decisions.decide(store, "log", {"at": version}, after=version)
    first = decisions.history(store, "log")
    assert store.reads == 50
    decisions.decide(store, "log", {"at": 50}, after=50)
    assert decisions.history(store, "log")[:-1] == first
    assert decisions.current(store, "log").version == 51
    assert store.reads == 51


def test_a_store_that_was_wiped_and_filled_again_is_read_again(tmp_path):
    import shutil

    store = LocalStore(tmp_path / "store")
    for value, versions in (("old", 3), ("new", 2), ("newest", 4)):
        for version in range(versions):
            decisions.decide(store, "fact", {"of": value}, after=version)
        assert decisions.current(store, "fact").value == {"of": value}
        assert decisions.current(store, "fact").version == versions
        assert [fact.value for fact in decisions.history(store, "fact")] == [{"of": value}] * versions
        shutil.rmtree(store.root)
        assert decisions.current(store, "fact") is None


def test_a_version_that_is_missing_from_a_history_is_named_and_not_passed_over(store):
    for version in range(3):
        decisions.decide(store, "log", {}, after=version)
    store.path("decisions/log/00000002.json").unlink()
    with pytest.raises(CompalignError, match="without a gap"):
        decisions.history(store, "log")


def test_a_history_that_was_listed_while_it_grew_is_listed_again(store):
    for version in range(3):
        decisions.decide(store, "log", {}, after=version)
    whole, looks = store.list, []

    def growing(prefix="", *, after=""):
        looks.append(prefix)
        return (item for item in whole(prefix, after=after) if len(looks) > 1 or not item.key.endswith("2.json"))

    store.list = growing
    assert [fact.version for fact in decisions.history(store, "log")] == [1, 2, 3]


def test_looking_at_the_newest_of_a_long_history_lists_only_what_is_new(store):
    for version in range(30):
        decisions.decide(store, "log", {}, after=version)
    assert decisions.current(store, "log").version == 30
    whole, listed = store.list, []

    def counted(prefix="", *, after=""):
        for item in whole(prefix, after=after):
            listed.append(item.key)
            yield item

    store.list = counted
    decisions.decide(store, "log", {}, after=30)
    assert decisions.current(store, "log").version == 31
    assert len(listed) == 2


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first():
    memory = decisions._Memory(most_bytes=100)
    items = [Listed(f"decisions/a/{at}", 40, "stamp") for at in range(4)]
    for at, item in enumerate(items):
        memory.put("url", item, decisions.Decision("a", at, {}, ""))
    assert [memory.get("url", item) is not None for item in items] == [False, False, True, True]
    assert memory.get("elsewhere", items[3]) is None


def test_a_move_that_loses_the_race_looks_again_and_decides_by_what_it_finds(store):
    seen = []

    def count(now):
        seen.append(now.version if now else 0)
        if len(seen) == 1:
            decisions.decide(store, "count", {"n": 10}, after=0)  # somebody else, in between
        return {"n": (now.value["n"] if now else 0) + 1}

    assert decisions.move(store, "count", count).value == {"n": 11}
    assert seen == [0, 1]
    assert decisions.move(store, "count", lambda now: None).version == 2


def test_an_error_that_is_no_lost_race_ends_a_move_at_once(store):
    class DeniedError(CompalignError):
        pass

    def refuse(*_):
        raise DeniedError("store", expected="rights", found="none", remedy="Ask.")

    store.put_new = refuse
    with pytest.raises(DeniedError):
        decisions.move(store, "count", lambda now: {"n": 1})
