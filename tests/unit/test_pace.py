import pytest

from compalign_dagster.pace import Pace, duration


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_the_first_call_knows_no_rate(clock):
    assert Pace(clock).words(10, 2000, "steps") == "steps: 10 of 2,000"


def test_rate_and_time_left_count_from_where_the_work_began(clock):
    pace = Pace(clock)
    pace.words(1000, 2000, "steps")
    clock.now = 50.0
    assert pace.words(1100, 2000, "steps") == "steps: 1,100 of 2,000, 2.0/s, 8 min left"
    assert pace.words(7, 9, "shards") == "shards: 7 of 9"
    clock.now = 100.0
    assert pace.words(8, 9, "shards") == "shards: 8 of 9, 50.0 s each, 50 s left"
    assert pace.words(2000, 2000, "steps") == "steps: 2,000 of 2,000, 10.0/s"


def test_work_that_begins_again_under_the_same_name_is_timed_anew(clock):
    pace = Pace(clock)
    pace.words(0, 10, "images")
    clock.now = 10.0
    pace.words(10, 10, "images")
    assert pace.words(1, 10, "images") == "images: 1 of 10"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (540, "9 min"), (9000, "2.5 h")])
def test_durations_are_rough(seconds, words):
    assert duration(seconds) == words
