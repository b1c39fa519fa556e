import pytest

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import MemberReader, Shard
from compalign_dagster.errors import InputError
from compalign_dagster.scoring.reading import Job, images, together
from compalign_dagster.store import LocalStore
from tests.support.tiny_reward import crawl_shard


class Counted(LocalStore):
    """A folder that remembers every range it was asked for."""

    def __init__(self, folder):
        super().__init__(folder)
        self.ranges = []

    def read_range(self, key, offset, length, *, stamp=None):
        self.ranges.append((offset, length))
        return super().read_range(key, offset, length, stamp=stamp)


@pytest.fixture
def job(tmp_path):
    found = crawl_shard(tmp_path, count=12)
    shard = Shard(found.name, Counted(tmp_path), found.key)
    return Job.of(shard, index_shard(shard).pairs)


def read(job):
    with MemberReader() as members:
        return list(images(members, job))


def one_by_one(job):
    with MemberReader() as members:
        return [members.read(job.shard, *place) for place in job.places]


def test_neighbours_are_read_at_once_and_are_the_members_bytes(job):
    wanted = one_by_one(job)
    job.shard.store.ranges.clear()
    assert read(job) == wanted
    assert len(job.shard.store.ranges) == 1, "twelve small images a few kB apart"


def test_the_planted_fault_of_a_range_that_starts_late_is_noticed(job, monkeypatch):
    wanted = one_by_one(job)
    read_range = Counted.read_range
    monkeypatch.setattr(
        Counted, "read_range", lambda self, key, offset, length, **rest: read_range(self, key, offset + 1, length)
    )
    assert read(job) != wanted


def test_images_in_any_order_are_read_by_as_many_ranges_as_that_takes(job):
    backwards = Job(job.shard, job.pairs, job.places[::-1], job.rows[::-1])
    wanted = one_by_one(backwards)
    assert read(backwards) == wanted


def test_a_read_is_bounded_unless_one_image_is_larger():
    places = [(0, 100), (110, 100), (220, 100), (330, 2000), (2340, 100)]
    assert list(together(places, most=320, gap=50)) == [places[:3], [places[3]], [places[4]]]


def test_a_gap_that_costs_more_than_a_request_is_not_read():
    assert list(together([(0, 10), (61, 10), (1000, 10)], most=10_000, gap=50)) == [[(0, 10)], [(61, 10)], [(1000, 10)]]
    assert list(together([(0, 10), (60, 10)], most=10_000, gap=50)) == [[(0, 10), (60, 10)]]


def test_places_that_overlap_or_step_back_are_read_apart():
    assert list(together([(100, 50), (120, 50), (0, 10)])) == [[(100, 50)], [(120, 50)], [(0, 10)]]


def test_no_images_are_no_reads():
    assert list(together([])) == []


def test_a_shard_that_is_shorter_than_its_index_is_refused(job):
    path = job.shard.store.path(job.shard.key)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(InputError, match="index it again"):
        read(job)
