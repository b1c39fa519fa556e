import pyarrow as pa

from compalign_dagster.evaluation.leakage import remove_leaked


def test_leaked_images_leave_the_test_set_with_all_their_captions():
    pairs = pa.table({"image_sha256": ["a", "a", "b", "c"], "caption": ["1", "2", "3", "4"]})
    found = remove_leaked(pairs, {"kept": ["a", "x"], "judged": ["c", "a"], "crawl": []})
    assert found.clean["caption"].to_pylist() == ["3"]
    assert found.leaked == {"kept": ["a"], "judged": ["a", "c"], "crawl": []}
    assert found.counts() == {"kept": 1, "judged": 2, "crawl": 0}


def test_a_clean_test_set_is_left_alone():
    pairs = pa.table({"image_sha256": ["a"], "caption": ["1"]})
    assert remove_leaked(pairs, {"kept": ["b"]}).clean.equals(pairs)
