import pytest

from compalign_dagster.scoring.meter import STAGES, Meter, in_words


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_shares_are_of_the_time_inside_the_stages_and_sum_to_one():
    clock = Clock()
    meter = Meter(clock)
    for stage, seconds in (("forward", 6.0), ("decode", 3.0), ("forward", 1.0)):
        with meter.during(stage):
            clock.now += seconds
        clock.now += 100  # outside of all stages
    shares = meter.shares()
    assert tuple(shares) == STAGES
    assert shares == {"read": 0.0, "decode": 0.3, "forward": 0.7, "write": 0.0}
    assert in_words(shares) == "forward 70 %, decode 30 %"


def test_time_counts_though_the_stage_fails():
    clock = Clock()
    meter = Meter(clock)

    def fail():
        with meter.during("read"):
            clock.now += 2
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    assert meter.seconds["read"] == 2


def test_shares_of_no_time_sum_to_one_too():
    assert sum(Meter(Clock()).shares().values()) == 1
