"""The sensor that filters again when the block list is newer than the dataset."""

import dagster as dg
import pytest

from compalign_dagster.selection import blocks
from compalign_dagster.selection.current import history
from sensors.takedowns import takedowns
from tests.support.small_version import HOSTS, SmallStore, small_store

pytestmark = [pytest.mark.slow]


def _tick(small: SmallStore) -> dg.RunRequest | dg.SkipReason:
    with dg.build_sensor_context(resources={"storage": small.storage}) as context:
        return takedowns(context)


def test_a_takedown_asks_for_one_run_and_the_dataset_that_obeys_it_for_none(tmp_path):
    small = small_store(tmp_path)
    assert "no dataset yet" in _tick(small).skip_message
    small.filter(keep_fraction="0.3")
    assert "number 0" in _tick(small).skip_message

    blocks.add(small.store, [blocks.entry("url_host", HOSTS[0], request="ticket-1")])
    asked = [_tick(small), _tick(small)]
    assert [request.run_key for request in asked] == ["block-list-1"] * 2, "Dagster starts one run for one key"

    small.filter(keep_fraction="0.3")
    assert "number 1" in _tick(small).skip_message
    assert history(small.store)[-1].value["blocks"] == 1

    blocks.add(small.store, [blocks.entry("url_host", HOSTS[1], request="ticket-2")])
    assert _tick(small).run_key == "block-list-2"
