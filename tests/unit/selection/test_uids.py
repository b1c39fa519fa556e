import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compalign_dagster.selection.uids import as_pair_ids, as_uids, write_uids

PAIR_IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)


def as_their_tools_write(pair_ids):
    """The array as tools of DataComp's make it, one identifier at a time."""
    found = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in set(pair_ids)], np.dtype("u8,u8"))
    found.sort()
    return found


@given(st.lists(PAIR_IDS, max_size=40))
def test_identifiers_come_back_from_their_numbers(pair_ids):
    assert as_pair_ids(as_uids(pair_ids)) == pair_ids


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(PAIR_IDS | st.sampled_from(["00" * 16, "ff" * 16, "80" * 16]), max_size=20), max_size=4))
def test_the_file_holds_each_identifier_once_in_order_as_other_tools_write_it(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("uids") / "uids.npy"
    count = write_uids(path, parts)
    found = np.load(path, allow_pickle=False)
    expected = as_their_tools_write([pair_id for part in parts for pair_id in part])
    assert found.dtype == np.dtype("u8,u8")
    assert count == len(found)
    np.testing.assert_array_equal(found, expected)


def test_signed_numbers_would_be_caught():
    high = as_uids(["ff" * 16, "00" * 16])
    assert np.sort(high)[0] != np.sort(high.view("i8,i8")).view(high.dtype)[0], "the planted bug sorts ff before 00"


def test_a_hundred_thousand_identifiers_are_sorted_over_all_leading_bytes(tmp_path):
    pair_ids = [hashlib.sha256(bytes([at % 256, at // 256 % 256, at // 65536])).hexdigest()[:32] for at in range(10**5)]
    path = tmp_path / "uids.npy"
    assert write_uids(path, [pair_ids[: 10**4], pair_ids]) == 10**5
    assert as_pair_ids(np.load(path)) == sorted(pair_ids)
    assert [item.name for item in tmp_path.iterdir()] == ["uids.npy"]


@pytest.mark.parametrize("wrong", ["", "ab", "zz" * 16, "ab" * 17])
def test_what_is_no_identifier_is_refused(wrong):
    with pytest.raises(ValueError):
        as_uids([wrong])
