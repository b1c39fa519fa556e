import dataclasses
import io
import json

import polars as pl
import pytest

from compalign_dagster import artifacts, decisions, parquet
from compalign_dagster.annotation.tables import REJECTED
from compalign_dagster.crawl.batches import live_shards, read_log
from compalign_dagster.crawl.live import is_delivered
from compalign_dagster.crawl.shards import Shard, read_member
from compalign_dagster.errors import InputError
from compalign_dagster.lineage import erase, places, purge, takedown
from compalign_dagster.lineage.redaction import redactions
from compalign_dagster.lineage.takedown import destroy, doomed, read_request, request, withdraw
from compalign_dagster.lineage.verify import verify_version
from compalign_dagster.pages.images import thumbnail_uri
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import blocks
from compalign_dagster.selection.blocks import entry
from compalign_dagster.selection.resharding import reshard
from compalign_dagster.selection.version import Version
from compalign_dagster.versions import digest_bytes
from tests.support.small_clusters import small_clusters
from tests.support.small_version import HOSTS
from tests.unit.lineage.scanning import traces

WHY = Reason("an auditor", "ticket 7")
SHARD, KEY = "web/00000.tar", "000000001"


def the_pair(small, shard=SHARD, key=KEY):
    """A row of the pair index."""
    among = places.deliveries(small.store)
    return next(
        row
        for item in among
        if item.shard == shard
        for row in places.index_of(small.store, item).to_dicts()
        if row["key"] == key
    )


def image_of(small, row):
    return read_member(Shard(row["shard"], small.landing, row["shard"]), row["image_offset"], row["image_length"])


def needles_of(small, rows):
    """Image bytes, their thumbnail, URL, and caption of pairs; not what pairs of other images say as well."""
    everything = pl.concat([places.index_of(small.store, item) for item in places.deliveries(small.store)])
    others = set(everything.filter(~pl.col("image_sha256").is_in([row["image_sha256"] for row in rows]))["caption"])
    found = []
    for row in rows:
        image = image_of(small, row)
        found += [image, thumbnail_uri(image).encode()]
        found += [text.encode() for text in (row["caption"], row["url"]) if text and text not in others]
    return found


def test_a_request_is_recorded_blocks_and_names_the_versions_that_hold_its_pairs(small):
    row = the_pair(small)
    told = request(small.store, [entry("url", row["url"], request="ticket-7")], WHY)
    assert told["pairs"] == 1
    assert told["first_ids"] == [row["pair_id"]]
    before = {one["version"]: one["kept"] for one in told["versions"]}
    assert len(before) == 2
    (fact,) = decisions.history(small.store, takedown.DECISION)
    assert (fact.value["by"], fact.value["why"]) == ("an auditor", "ticket 7")
    assert row["url"] not in json.dumps(fact.value)
    version = small.filter(keep_fraction="0.5")
    assert version.find([row["pair_id"]])["reason"].to_list() == ["takedown"]
    assert version.facts["dropped_by_reason"]["takedown"] == 1


def test_the_same_request_twice_is_one(small):
    entries = [entry("url_host", HOSTS[0], request="t")]
    first = request(small.store, entries, WHY)
    assert request(small.store, entries, WHY)["block_list"] == first["block_list"]
    assert len(takedown.history(small.store)) == 1


def test_a_run_that_died_behind_the_record_is_made_good_by_the_next(small):
    dead = dataclasses.asdict(entry("url_host", HOSTS[1], request="dead"))
    decisions.decide(
        small.store, takedown.DECISION, {"action": "request", "entries": [dead], "by": "x", "why": "y"}, after=0
    )
    request(small.store, [entry("url_host", HOSTS[0], request="t")], WHY)
    assert set(blocks.entries(blocks.in_force(small.store))["value"].to_pylist()) == set(HOSTS[:2])


def test_a_withdrawn_request_blocks_nothing_and_stays_on_record(small):
    row = the_pair(small)
    request(small.store, [entry("pair_id", row["pair_id"], request="t")], WHY)
    withdraw(small.store, "t", WHY)
    assert blocks.entries(blocks.in_force(small.store)).num_rows == 0
    assert [fact.value["action"] for fact in takedown.history(small.store)] == ["request", "withdraw"]
    with pytest.raises(InputError, match="on record"):
        withdraw(small.store, "t", WHY)


def purged(small, entries):
    request(small.store, entries, WHY)
    return destroy(small.store, small.landing, entries, WHY)


def test_after_a_purge_a_byte_scan_finds_nothing(small):
    host = [entry("url_host", HOSTS[2], request="t")]
    gone = doomed(small.store, host)
    rows = [the_pair(small, shard, key) for shard, key in gone.select("shard", "key").unique().iter_rows()]
    needles = needles_of(small, rows)
    assert len(rows) > 5
    assert any(name.endswith("page.html") for name in traces(small.home / "store", needles))
    assert len(traces(small.home / "landing", needles)) == 4
    done, _ = purged(small, host)
    assert traces(small.home / "store", needles) == []
    assert traces(small.home / "landing", needles) == []
    assert {change.place for change in done.changes} == {"store", "landing"}
    assert not [text for text in done.remaining if "label exports" not in text and "Reward model" not in text]


@pytest.fixture
def clustered(small):
    """`small` with semantic clusters that its newest version is capped by, and a pair that their sheet shows."""
    clusters = small_clusters(small, 30)
    version = small.filter(keep_fraction="0.5", most_per_semantic_cluster=2)
    shard, key, _ = clusters.store.read(clusters.file_key("preview.txt")).decode().splitlines()[0].split()
    return clusters, version.artifact, the_pair(small, shard, key)


def vectors_of(store, image):
    """What tables of the store hold of an image's vector, by key: its own, and centres that it is nearest to."""
    keys = [item.key for item in store.list() if item.key.endswith(("embeddings.parquet", "clusters.parquet"))]
    frames = {key: pl.read_parquet(io.BytesIO(store.read(key))) for key in keys}
    found = {key: frame.filter(image_sha256=image)["embedding"].to_list() for key, frame in frames.items()}
    return {key: held for key, held in found.items() if held}


def test_after_a_purge_no_vector_centre_or_sheet_of_the_image_is_left_and_its_version_verifies(small, clustered):
    clusters, version, row = clustered
    assert all(None not in held for held in vectors_of(small.store, row["image_sha256"]).values())
    done, _ = purged(small, [entry("pair_id", row["pair_id"], request="t")])
    left = vectors_of(small.store, row["image_sha256"])
    assert left and {vector for held in left.values() for vector in held} == {None}
    assert not small.store.exists(clusters.file_key("preview.jpg"))
    assert clusters.file_key("assignment.parquet") not in {change.key for change in done.changes}
    report = verify_version(small.store, version.manifest_key)
    assert [str(fault) for fault in report.faults] == []
    kept = Version.open(version)
    before = kept.facts["dropped_by_reason"]["cluster_cap"]
    assert before == kept.capped.filter(reason="cluster_cap").height > 0


def test_the_planted_bug_of_leaving_vectors_out_is_seen(small, clustered, monkeypatch):
    row = clustered[2]
    monkeypatch.setattr(erase, "_EMPTIED", {"caption": "", "url": None, "detail": ""})
    purged(small, [entry("pair_id", row["pair_id"], request="t")])
    assert any(vector for held in vectors_of(small.store, row["image_sha256"]).values() for vector in held)


def test_the_planted_bug_of_leaving_tables_out_is_seen_by_the_scan(small, monkeypatch):
    entries = [entry("pair_id", the_pair(small)["pair_id"], request="t")]
    needles = needles_of(small, [the_pair(small)])
    monkeypatch.setattr(purge, "_plan_table", lambda *_: None)
    purged(small, entries)
    assert any(name.endswith("pairs.parquet") for name in traces(small.home / "store", needles))


def test_the_planted_bug_of_leaving_pages_out_is_seen_by_the_scan(small, monkeypatch):
    entries = [entry("url_host", HOSTS[2], request="t")]
    rows = [the_pair(small, *place) for place in doomed(small.store, entries).select("shard", "key").iter_rows()]
    needles = needles_of(small, rows)
    monkeypatch.setattr(purge, "_plan_views", lambda *_: None)
    purged(small, entries)
    assert any(name.endswith("page.html") for name in traces(small.home / "store", needles))


def test_a_purge_leaves_every_other_pair_as_it_was(small):
    row = the_pair(small)
    among = places.deliveries(small.store)
    before = {item.pairs_key: places.index_of(small.store, item) for item in among}
    images = {
        (other["shard"], other["key"]): image_of(small, other)
        for frame in before.values()
        for other in frame.to_dicts()
    }
    gone = set(doomed(small.store, [entry("pair_id", row["pair_id"], request="t")]).select("shard", "key").iter_rows())
    purged(small, [entry("pair_id", row["pair_id"], request="t")])
    mine = pl.struct("shard", "key").is_in([{"shard": shard, "key": key} for shard, key in gone])
    for key, frame in before.items():
        after = pl.read_parquet(io.BytesIO(small.store.read(key)))
        assert after.filter(~mine).equals(frame.filter(~mine))
        assert after.drop("caption", "url").equals(frame.drop("caption", "url"))
        assert after.filter(mine)["caption"].to_list() == [""] * after.filter(mine).height
        assert after.schema == frame.schema
        for other in frame.to_dicts():
            place = (other["shard"], other["key"])
            assert (image_of(small, other) == images[place]) == (place not in gone)


def test_landed_shards_keep_the_time_by_which_the_batch_log_knows_them(small):
    purged(small, [entry("pair_id", the_pair(small)["pair_id"], request="t")])
    assert all(is_delivered(small.landing, item) for _, item in live_shards(read_log(small.store)).values())


def test_every_altered_file_is_explained_by_a_record_and_no_other(small):
    stated = _stated(small.store)
    purged(small, [entry("pair_id", the_pair(small)["pair_id"], request="t-9")])
    known = redactions(small.store)
    changed = {key for key, sha256 in stated.items() if _now(small.store, key) != sha256}
    assert changed == {key for key, item in known.items() if item.changes[0].place == "store"}
    assert all(known[key].explains(stated[key], _now(small.store, key)) for key in changed)
    assert all(item.requests == ("t-9",) for item in known.values())
    assert not any(item.explains("0" * 64, item.changes[-1].now) for item in known.values())
    assert not any(item.explains(item.changes[0].was, "0" * 64) for item in known.values())


def test_two_purges_of_one_file_are_one_explained_chain(small):
    stated = _stated(small.store)
    for key in (KEY, "000000002"):
        purged(small, [entry("pair_id", the_pair(small, key=key)["pair_id"], request=f"t{key}")])
    twice = [item for item in redactions(small.store).values() if len(item.changes) == 2]
    assert len(twice) >= 3
    for item in twice:
        if item.changes[0].place == "store":
            assert item.explains(stated[item.key], _now(small.store, item.key))
        assert item.changes[0].now == item.changes[1].was


def test_a_purge_that_runs_again_changes_and_records_nothing(small):
    entries = [entry("url_host", HOSTS[2], request="t")]
    purged(small, entries)
    before = {path: path.read_bytes() for path in small.home.rglob("*.parquet")}
    count = len(redactions(small.store))
    done, _ = destroy(small.store, small.landing, entries, WHY)
    assert done.changes == ()
    assert len(redactions(small.store)) == count
    assert {path: path.read_bytes() for path in small.home.rglob("*.parquet")} == before


def test_a_purge_that_was_killed_after_its_record_goes_on(small, monkeypatch):
    row = the_pair(small)
    entries, needles = [entry("pair_id", row["pair_id"], request="t")], needles_of(small, [row])
    with monkeypatch.context() as patch:
        patch.setattr(type(small.store), "replace", _killed)
        with pytest.raises(KeyboardInterrupt):
            purged(small, entries)
    stated = _stated(small.store)
    destroy(small.store, small.landing, entries, WHY)
    assert traces(small.home, needles) == []
    known = redactions(small.store)
    assert all(known[key].explains(sha, _now(small.store, key)) for key, sha in stated.items() if key in known)


def _killed(*_, **__):
    raise KeyboardInterrupt


def test_a_second_delivery_is_stopped_under_another_url_and_name(small):
    row = the_pair(small)
    image = image_of(small, row)
    purged(small, [entry("url", row["url"], request="t")])
    names = small.land()
    _add(small.home / "landing" / names[0], image)
    small.settle()
    version = small.filter(keep_fraction="1")
    again = [
        one["pair_id"]
        for item in places.deliveries(small.store)
        if item.shard == names[0]
        for one in places.index_of(small.store, item).to_dicts()
        if one["key"] == "later"
    ]
    assert version.find(again)["reason"].to_list() == ["takedown"]


def test_the_planted_bug_of_blocking_the_url_alone_lets_a_second_delivery_in(small):
    row = the_pair(small)
    image = image_of(small, row)
    request(small.store, [entry("url", row["url"], request="t")], WHY)
    names = small.land()
    _add(small.home / "landing" / names[0], image)
    small.settle()
    version = small.filter(keep_fraction="1")
    kept = pl.concat([version.kept(batch) for batch in version.batches()])
    assert kept.filter(key="later").height == 1


def _add(path, image):
    from tests.support.shard_builder import tar

    fields = json.dumps({"captions": ["another caption altogether"], "url": "https://mirror.example/x.jpg"})
    path.write_bytes(tar([("later.jpg", image), ("later.json", fields.encode())]))


def test_a_resharded_copy_loses_the_sample_too(small, tmp_path):
    version = small.filter(keep_fraction="1")
    kept = pl.concat([version.kept(batch) for batch in version.batches()])
    captions = pl.concat([places.index_of(small.store, item) for item in places.deliveries(small.store)])
    rows = kept.join(captions.select("pair_id", "shard", "key", "caption_index", "caption"),
                     on=["pair_id", "shard", "key", "caption_index"])  # fmt: skip
    shards = {name: Shard(name, small.landing, name) for name in rows["shard"].unique()}
    (path,) = reshard(rows.sort("shard", "image_offset", "caption_index"), shards, tmp_path / "tars")
    made = artifacts.publish(
        small.store, "filtered_dataset", "f" * 32, {"shards/00000.tar": path}, code_version=1, inputs=[], config={},
        facts={},
    )  # fmt: skip
    row = the_pair(small)
    needles = needles_of(small, [row])
    assert made.file_key("shards/00000.tar") in traces(small.home / "store", needles)
    purged(small, [entry("pair_id", row["pair_id"], request="t")])
    assert traces(small.home / "store", needles) == []
    assert len(made.fetch("shards/00000.tar").read_bytes()) == path.stat().st_size


def test_a_shard_that_cannot_be_rewritten_is_named_among_what_remains(small):
    row = the_pair(small)
    other = small.home / "landing" / SHARD
    other.write_bytes(other.read_bytes() + bytes(512))
    done, _ = purged(small, [entry("pair_id", row["pair_id"], request="t")])
    assert any(SHARD in text and "not the delivery" in text for text in done.remaining)


def test_evaluation_overlap_blocks_and_destroys_nothing(small):
    row = the_pair(small)
    entries = [entry("pair_id", row["pair_id"], request="e", reason="evaluation_overlap")]
    done, _ = purged(small, entries)
    assert done.changes == ()
    assert small.filter(keep_fraction="0.5").find([row["pair_id"]])["reason"].to_list() == ["evaluation_overlap"]


def test_a_table_with_a_text_of_which_nobody_can_tell_whose_it_is_is_named_among_what_remains(small, tmp_path):
    row = the_pair(small)
    said = {"file": "a.jsonl", "line": 1, "reason": "no_image", "detail": f"found {row['url']!r}"}
    path = parquet.write(parquet.from_rows([said], REJECTED), tmp_path / "rejected.parquet")
    made = artifacts.publish(
        small.store, "coco_hf_annotations", "f" * 32, {"rejected.parquet": path}, code_version=1, inputs=[], config={},
        facts={},
    )  # fmt: skip
    done, _ = purged(small, [entry("pair_id", row["pair_id"], request="t")])
    assert any(made.file_key("rejected.parquet") in text for text in done.remaining)


def test_a_request_is_read_from_csv_and_jsonl(tmp_path):
    table = tmp_path / "ticket.csv"
    table.write_text(
        "\ufeffkind,value,request,reason,distance\nurl_host,A.example,,,\nimage_near,00000000000000FF,r,,4\n"
    )
    lines = tmp_path / "ticket.jsonl"
    lines.write_text('{"kind": "url_host", "value": "a.example"}\n\n'
                     '{"kind":"image_near","value":"00000000000000ff","request":"r","distance":4}\n')  # fmt: skip
    assert read_request(table) == read_request(lines)
    assert {item.request for item in read_request(table)} == {"ticket", "r"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", b"", "at least one entry"),
        ("x.csv", b"host\nexample.com\n", "line 2"),
        ("x.csv", b"kind,value\nurl_host,com\n", "line 2: block list: url_host"),
        ("x.csv", b"kind,value\nurl,https://a.example/,extra,more\n", "line 2"),
        ("x.csv", b"kind,value\n\xff\xfe,1\n", "UTF-8"),
        ("x.csv", b'kind,value\n"url,https://a.example/\n', "CSV"),
        ("x.csv", b"kind,value,distance\nimage_near,00000000000000ff,two\n", "whole number"),
        ("x.jsonl", b"[1]\n", "line 1"),
        ("x.jsonl", b"{\n", "JSONL"),
        ("x.jsonl", b'{"kind": "url", "value": "https://a.example/", "shell": "rm"}\n', "line 1"),
        ("x.jsonl", b"[" * 100_000, "JSONL"),
    ],
)
def test_a_file_that_is_no_request_is_refused_with_its_line(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_request(path)


def _stated(store):
    """What every manifest says of every file, by store key."""
    found = {}
    for item in store.list():
        if item.key.endswith("/manifest.json"):
            made = artifacts.load(store, item.key)
            found |= {made.file_key(name): facts["sha256"] for name, facts in made.manifest["files"].items()}
    return found


def _now(store, key):
    return digest_bytes(store.read(key)) if store.exists(key) else None
