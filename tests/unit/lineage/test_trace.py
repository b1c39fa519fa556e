import hashlib

import pytest

from compalign_dagster.crawl.shards import Shard, read_member
from compalign_dagster.errors import InputError
from compalign_dagster.lineage import takedown
from compalign_dagster.lineage.trace import Sought, trace
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import versions
from compalign_dagster.selection.blocks import entry
from compalign_dagster.store import LocalStore
from tests.unit.lineage.test_takedown import the_pair

WHY = Reason("an auditor", "ticket 7")


def test_a_pair_is_found_in_four_ways_with_the_same_story(made):
    row = the_pair(made)
    by_id = trace(made.store, Sought(pair_id=row["pair_id"]))
    others = [
        Sought(url=row["url"]),
        Sought(shard=row["shard"], key=row["key"]),
        Sought(image_sha256=row["image_sha256"]),
    ]
    for sought in others:
        found = trace(made.store, sought)
        assert [pair for pair in found["pairs"] if pair["pair_id"] == row["pair_id"]] == by_id["pairs"]
        assert found["models"] == by_id["models"]


def test_a_pair_is_also_looked_for_in_batches_that_no_version_was_made_from(small):
    before = trace(small.store, Sought(pair_id=(row := the_pair(small, key="again"))["pair_id"]))
    small.land()
    small.index()
    after = trace(small.store, Sought(pair_id=row["pair_id"]))
    assert after["found"] == before["found"] + small.shards
    assert [pair["versions"] for pair in after["pairs"]][-1] == []


def test_the_story_leads_to_the_bytes(made):
    (pair,) = trace(made.store, Sought(pair_id=the_pair(made)["pair_id"]))["pairs"]
    shard, image = made.home / "landing" / pair["shard"], pair["image"]
    assert pair["landed"]["shard"] == str(shard)
    assert pair["landed"]["sha256"] == hashlib.sha256(shard.read_bytes()).hexdigest()
    data = read_member(Shard(pair["shard"], made.landing, pair["shard"]), image["offset"], image["length"])
    assert hashlib.sha256(data).hexdigest() == image["sha256"]
    assert hashlib.sha256(bytes.fromhex(image["sha256"]) + pair["caption"].encode()).hexdigest()[:32] == pair["pair_id"]


def test_every_version_has_its_decision_cut_scores_and_people(made):
    row = the_pair(made)
    (pair,) = trace(made.store, Sought(pair_id=row["pair_id"]))["pairs"]
    known = versions.history(made.store)
    assert [one["version"] for one in pair["versions"]] == [item.name for item in known]
    for one, item in zip(pair["versions"], known, strict=True):
        version = versions.resolve(made.store, item.name)
        decision = version.find([row["pair_id"]]).to_dicts()[0]
        assert one["reason"] == decision["reason"]
        assert one["decision"] == ("kept" if decision["reason"] is None else "dropped")
        assert one["scores"]["reward"] == decision["reward"]
        assert one["cut"]["cut"] == version.cuts["cut"][0]
        assert one["current"][0]["decided"]
        assert one["policy_adopted"][0]["decided"]
        kinds = [step["kind"] for step in one["made_by"]]
        assert kinds == ["scored_shards_shards", "score_ledger", "ranked_pairs", "filtered_dataset"]
        assert {step["run"] for step in one["made_by"]} == {"not recorded"}


def test_the_model_is_told_with_judges_guidelines_exports_and_who_promoted_it(made):
    (model,) = trace(made.store, Sought(pair_id=the_pair(made)["pair_id"]))["models"]
    annotations = next(item for item in model["trained_on"] if "guidelines" in item)
    assert annotations["images_by_labeler"] == {"ada": 6, "grace": 6}
    assert annotations["guidelines"] == ["v1"]
    assert {item["file"] for item in annotations["exports"]} == {"judgements.jsonl", "shards/judged/00000.tar"}
    assert [(one["by"], one["why"]) for one in model["promotions"]] == [("a curator", "first is good enough")]


def test_runs_come_from_whoever_knows_them(made):
    found = trace(made.store, Sought(pair_id=the_pair(made)["pair_id"]), run_of=lambda made: f"run of {made.kind}")
    steps = found["pairs"][0]["versions"][0]["made_by"]
    assert [step["run"] for step in steps] == [f"run of {step['kind']}" for step in steps]


def test_a_pair_that_lies_in_several_shards_is_told_of_each(made):
    row = the_pair(made, key="again")
    found = trace(made.store, Sought(pair_id=row["pair_id"]))
    assert found["found"] == 4
    assert len({pair["shard"] for pair in found["pairs"]}) == 4


def test_a_blocked_and_redacted_pair_says_so(small):
    row = the_pair(small)
    entries = [entry("url", row["url"], request="ticket-7")]
    takedown.request(small.store, entries, WHY)
    assert trace(small.store, Sought(pair_id=row["pair_id"]))["pairs"][0]["blocked"]["request"] == "ticket-7"
    takedown.destroy(small.store, small.landing, entries, WHY)
    (pair,) = trace(small.store, Sought(pair_id=row["pair_id"]))["pairs"]
    assert (pair["caption"], pair["url"], pair["redacted"]) == ("", None, ["ticket-7"])
    with pytest.raises(InputError, match="a pair of an indexed shard"):
        trace(small.store, Sought(url=row["url"]))


def test_a_shard_that_was_removed_is_told_as_not_live(small):
    row = the_pair(small)
    small.remove(row["shard"])
    version = small.filter(keep_fraction="0.5")
    (pair,) = trace(small.store, Sought(pair_id=row["pair_id"]))["pairs"]
    assert pair["landed"]["live"] is False
    assert version.artifact.work_key[:12] not in [one["version"] for one in pair["versions"]]
    assert len(pair["versions"]) == 2


@pytest.mark.parametrize(
    "sought", [Sought(pair_id="0" * 32), Sought(url="https://nowhere.example/"), Sought(shard="a.tar", key="b")]
)
def test_what_is_nowhere_is_one_clear_error(made, tmp_path, sought):
    for store in (made.store, LocalStore(tmp_path / "empty")):
        with pytest.raises(InputError, match="a pair of an indexed shard"):
            trace(store, sought)
