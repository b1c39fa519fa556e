"""The sums of `docs/scale.md` follow from measured figures; the small instance counts what its runs leave."""

import json

import pytest

from benchmarks.scale import __main__ as command
from benchmarks.scale import instance, tables
from benchmarks.scale.__main__ import HERE, MARKER, PAGE


def test_the_page_and_the_result_are_of_one_run():
    result = json.loads((HERE / "result.json").read_text())
    assert PAGE.read_text().partition(MARKER)[2].strip() == tables.page(result).strip()


def test_batches_are_full_by_shards_or_by_pairs_whichever_comes_first():
    assert tables.work(1_000_000, 100, 1_000_000) == {"pairs": 1_000_000, "shards": 100, "batches": 1}
    assert tables.work(1_000_001, 100, 1_000_000)["batches"] == 2
    assert tables.work(1_000_000, 10, 1_000_000)["batches"] == 10
    assert tables.work(1_000_000, 100, 50_000)["batches"] == 20


def test_the_fit_gives_back_the_costs_that_the_figures_were_made_with():
    sizes = [(1, 300), (1, 2400), (4, 1200)]
    rows = [
        {
            "shards": shards,
            "pairs": pairs,
            "store_bytes": {
                "pair index": 500 + 70 * shards + 9 * pairs,
                "scores": 200 + 30 * shards + 5 * pairs,
                "ranked lists": 100 + 3 * pairs,
                "filtered dataset": 1000 + shards,
            },
        }
        for shards, pairs in sizes
    ]
    found = instance.fit(rows)
    assert found["pair index"] == pytest.approx({"batch": 500, "shard": 70, "pair": 9}, abs=0.1)
    assert found["scores"] == pytest.approx({"batch": 200, "shard": 30, "pair": 5}, abs=0.1)
    assert found["ranked lists"] == pytest.approx({"batch": 100, "shard": 0, "pair": 3}, abs=0.1)
    assert found["filtered dataset"] == {"version": 1004}


def test_a_crawl_twice_as_large_needs_twice_the_bytes_of_its_pairs():
    result = json.loads((HERE / "result.json").read_text())
    one, two, three = (
        tables.needs(tables.work(pairs, 100, 1_000_000), result) for pairs in (10**7, 2 * 10**7, 3 * 10**7)
    )
    for kind in ("pair index", "scores", "ranked lists", "selection memory", "event_rows"):
        assert one[kind] < two[kind]
        assert three[kind] - two[kind] == pytest.approx(two[kind] - one[kind])


@pytest.mark.slow
def test_a_small_instance_leaves_rows_by_batches_and_shards_not_by_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPALIGN_HOME", "")  # what the instance names is taken back
    monkeypatch.delenv("COMPALIGN_HOME")
    monkeypatch.setenv("DAGSTER_HOME", "")
    rows = instance.measure(tmp_path / "home", small=40, large=120)
    one, larger, more = (row["runs"]["score_batch"] for row in rows)
    assert [row["shards"] for row in rows] == [1, 1, instance.MORE]
    assert larger["event_rows"] == one["event_rows"], "three times the pairs, the same rows"
    assert more["event_rows"] > one["event_rows"], "each shard has its log lines"
    assert more["materialisations"] == one["materialisations"] == 2
    assert more["checks"] == one["checks"] > 0
    assert all(count > 0 for row in rows for count in row["store_bytes"].values())


def test_new_rates_and_prices_need_no_new_measurement(tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text((HERE / "result.json").read_text())
    (tmp_path / "page.md").write_text(f"prose\n{MARKER}\nold")
    monkeypatch.setattr(command, "HERE", tmp_path)
    monkeypatch.setattr(command, "PAGE", tmp_path / "page.md")
    before = json.loads((HERE.parent / "scale" / "result.json").read_text())
    known = {name: json.loads((HERE.parent / name / "result.json").read_text()) for name in ("scale", "selection")}
    monkeypatch.setattr(command, "_result", lambda name: known.get(name, {}))
    command.main(["--reuse", "--gpu-rates", "50", "--gpu-price", "3", "--pairs-per-second", "4"])
    after = json.loads((tmp_path / "result.json").read_text())
    assert after["runs"] == before["runs"]
    assert after["gpu"] == {"rates": [50.0], "price": 3.0}
    text = (tmp_path / "page.md").read_text()
    assert text.startswith("prose\n")
    assert "50 pairs/s" in text
    assert "old" not in text
