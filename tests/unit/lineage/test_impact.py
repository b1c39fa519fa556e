import polars as pl
import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.hosts import host_of
from compalign_dagster.lineage import impact, places
from compalign_dagster.selection import versions
from compalign_dagster.selection.blocks import entry
from tests.support.small_clusters import small_clusters
from tests.support.small_version import HOSTS
from tests.unit.lineage.test_takedown import the_pair


def everything(small):
    return pl.concat(
        [
            places.index_of(small.store, item).with_columns(batch=pl.lit(item.batch))
            for item in places.deliveries(small.store)
        ]
    )


def test_a_host_touches_exactly_its_pairs_in_every_version(made):
    rows = everything(made).filter(pl.col("url").map_elements(host_of, pl.String) == HOSTS[0])
    told = impact.of_entries(made.store, [entry("url_host", HOSTS[0], request="r")])
    assert (told["pairs"], told["occurrences"]) == (rows["pair_id"].n_unique(), rows.height)
    for one in told["versions"]:
        version = versions.resolve(made.store, one["version"])
        decided = pl.concat([version.decided(batch) for batch in version.batches()])
        mine = decided.join(rows, on=["pair_id", "shard", "key", "caption_index"], how="semi")
        assert one["kept"] == mine.filter(pl.col("reason").is_null()).height
        assert one["kept"] + one["dropped"] == mine.height


def test_a_batch_touches_what_versions_list_of_it(made):
    told = impact.of_batch(made.store, "batch-00002")
    rows = everything(made).filter(batch="batch-00002")
    assert (told["pairs"], told["occurrences"]) == (rows["pair_id"].n_unique(), rows.height)
    version = versions.resolve(made.store, "current")
    assert told["versions"][-1]["kept"] == version.kept("batch-00002").height
    assert told["models"] == []
    assert impact.of_batch(made.store, "batch-00001")["models"][0]["because"]


def test_a_labeler_and_a_model_touch_the_versions_that_the_model_has_cut(made):
    by_labeler = impact.of_labeler(made.store, "grace")
    by_model = impact.of_model(made.store, made.model.facts["model_version"][:8])
    assert by_labeler["versions"] == by_model["versions"]
    assert [one["kept"] for one in by_model["versions"]] == [
        item.artifact.facts["kept"] for item in versions.history(made.store)
    ]
    assert by_labeler["judged"][0]["images"] == 6


def test_a_model_that_made_the_clusters_of_a_version_has_decided_it_too(small):
    clusters = small_clusters(small)
    second = small.promote("second")
    for batch in small.batches:
        small.score(batch)
    capped = small.filter(keep_fraction="0.5", most_per_semantic_cluster=2).artifact
    assert capped.facts["model_version"] == second.facts["model_version"] != clusters.facts["model_version"]
    for model in (clusters.facts["model_version"], second.facts["model_version"]):
        told = impact.of_model(small.store, model)
        assert capped.manifest_key in {one["manifest"] for one in told["versions"]}
    plain = small.filter(keep_fraction="0.5").artifact
    told = impact.of_model(small.store, clusters.facts["model_version"])
    assert plain.manifest_key not in {one["manifest"] for one in told["versions"]}


def test_images_that_look_alike_are_found_near(made):
    row = the_pair(made)
    told = impact.of_entries(made.store, [entry("image_near", row["image_phash"], request="r", distance=0)])
    same = everything(made).filter(image_phash=row["image_phash"])
    assert told["occurrences"] == same.height


@pytest.mark.parametrize(
    ("ask", "name"), [(impact.of_batch, "batch-99999"), (impact.of_model, "zz"), (impact.of_labeler, "nobody")]
)
def test_what_does_not_exist_is_one_clear_error(made, ask, name):
    with pytest.raises(InputError, match=name):
        ask(made.store, name)


def test_nothing_is_written(made):
    before = {item.key: item.stamp for item in made.store.list()}
    impact.of_entries(made.store, [entry("url_host", HOSTS[0], request="r")])
    impact.of_batch(made.store, "batch-00001")
    impact.of_labeler(made.store, "ada")
    assert {item.key: item.stamp for item in made.store.list()} == before
