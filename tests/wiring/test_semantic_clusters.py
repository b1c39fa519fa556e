"""`semantic_clusters` over a small crawl and a small CLIP: embedded shard by shard, once, and capped by a policy."""

import dagster as dg
import pytest

from assets import semantic_clusters, sheets
from assets.score_ledger import publish_ledger
from assets.scored_shards import score_batch
from assets.semantic_clusters import publish_clusters
from compalign_dagster import artifacts, decisions, latest, parquet
from compalign_dagster.crawl import batches
from compalign_dagster.crawl.clusters import ASSIGNMENT, table_of
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage.verify import verify_version
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.dual import DualReward
from compalign_dagster.reward.folder import model_version, save_model
from compalign_dagster.scoring import embedding
from compalign_dagster.selection.version import Version
from compalign_dagster.settings import load
from resources.accelerator import Accelerator
from tests.support.pipeline import BATCH, Pipeline, metadata_of
from tests.support.scoring import prepare
from tests.support.tiny_dual import tiny_dual
from tests.support.tiny_reward import NAMES, crawl_shard

PAIRS = 9


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a reward model whose towers are a small CLIP's."""
    folder = tmp_path_factory.mktemp("clip")
    source = tiny_dual("clip", folder / "clip", [f"a {colour} square" for colour in NAMES] * 20)
    config = reward_config({"backbone": "dual", "model": str(source), "image_size": 16})
    return save_model(DualReward.build(config, None), folder / "model")


class Scene:
    """A scored crawl of three shards in one batch, by that model."""

    def __init__(self, home, model):
        prepare(home, shards=3, pairs=PAIRS)
        self.settings = load(home=home, device="cpu", settle_seconds=0, keep_fraction="1", semantic_clusters=4)
        self.pipeline = Pipeline(self.settings, build(self.settings), dg.DagsterInstance.ephemeral())
        self.storage = self.pipeline.defs.resources["storage"]
        self.store = self.storage.store
        self.accelerator = Accelerator.from_settings(self.settings)
        files = {path.relative_to(model).as_posix(): path for path in model.rglob("*") if path.is_file()}
        facts = {"model_version": model_version(model)}
        made = artifacts.publish(
            self.store, "reward_model", "d" * 32, files, code_version=1, inputs=[], config={}, facts=facts
        )
        decisions.decide(self.store, "promoted_model", {"manifest": made.manifest_key, **facts}, after=1)
        self.score(BATCH)

    def score(self, batch):
        score_batch(self.storage, self.accelerator, batch)
        publish_ledger(self.store)

    def clusters(self):
        return publish_clusters(self.storage, self.accelerator, self.settings.semantic_clusters)

    def grow(self, name):
        from assets.raw_crawl import Budgets, index_batch

        crawl_shard(self.settings.home / "landing", PAIRS + 7, name)
        (batch,) = batches.seal(self.store, self.storage.landing, max_shards=100)
        index_batch(self.storage, batch, Budgets())
        self.score(batch.key)


def build(settings):
    from compalign_dagster.definitions import build_defs

    return build_defs(settings=settings)


@pytest.fixture
def scene(tmp_path, clip):
    return Scene(tmp_path / "home", clip)


@pytest.fixture
def published(monkeypatch):
    """The shards whose vectors were published since, in order."""
    made = []

    def publish(work, *rest, sound=embedding.publish):
        made.append(work.shard)
        return sound(work, *rest)

    monkeypatch.setattr(embedding, "publish", publish)
    return made


def test_from_landed_images_to_a_version_that_keeps_few_of_each_cluster(scene):
    pipeline = scene.pipeline
    result = dg.materialize(
        [next(asset for asset in pipeline.defs.assets if asset.key == dg.AssetKey("semantic_clusters"))],
        resources=pipeline.defs.resources,
        instance=pipeline.instance,
    )
    told = metadata_of(result, "semantic_clusters")
    images = sum(PAIRS + at % 3 for at in range(3))
    assert (told["images"], told["clusters"], told["shards"], told["embedded"]) == (images, 4, 3, 3)
    assert told["largest cluster"] == told["share of images in the largest 1 % of clusters"] * images
    assert f"| {told['largest cluster']} |" in told["largest clusters"]
    assert told["preview"].startswith("![preview](data:image/jpeg;base64,")
    assert [entry["kind"] for entry in told["inputs"]] == ["score_ledger", "reward_model"]

    made = latest.require(scene.store, "semantic_clusters")
    table = parquet.read(made.fetch("assignment.parquet"))
    assert table.schema.equals(ASSIGNMENT)
    listed = made.store.read(made.file_key("preview.txt")).decode().splitlines()
    assert 4 <= len(listed) <= 4 * sheets.SIDE
    places = {(row["shard"], row["key"]) for row in table.to_pylist()}
    assert all(tuple(line.split()[:2]) in places for line in listed)
    # Squares of one colour, which differ in a shade, are of one cluster.
    colours = {(int(row["key"]) % 4, row["cluster"]) for row in table.to_pylist()}
    assert len(colours) == 4 == len({cluster for _, cluster in colours})

    shown = metadata_of(pipeline.must("refilter", policy={"most_per_semantic_cluster": 2}), "filtered_dataset")
    assert shown["kept"] == 8
    assert shown["policy"]["most_per_semantic_cluster"] == 2
    version = latest.require(scene.store, "filtered_dataset")
    assert [source.kind for source in version.inputs] == ["score_ledger", "ranked_pairs", "semantic_clusters"]
    assert version.facts["dropped_by_reason"] == {"cluster_cap": images - 8}
    cluster_of = {(row["shard"], row["key"]): row["cluster"] for row in table.to_pylist()}
    opened = Version.open(version)
    kept = [cluster_of[place] for place in opened.kept(BATCH, ["shard", "key"]).select("shard", "key").rows()]
    assert sorted(kept) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [str(fault) for fault in verify_version(scene.store, version.manifest_key).faults] == []


def test_asked_again_it_is_there_another_number_embeds_nothing_and_a_grown_crawl_its_batch_alone(scene, published):
    first, reused = scene.clusters()
    assert (reused, len(published)) == (False, 3)
    again, reused = scene.clusters()
    assert reused and again.data_version == first.data_version
    published.clear()
    fewer, reused = publish_clusters(scene.storage, scene.accelerator, 2)
    assert not reused
    assert (fewer.facts["clusters"], fewer.facts["embedded"], published) == (2, 0, [])
    scene.grow("web/00007.tar")
    grown, reused = scene.clusters()
    assert not reused
    assert published == ["web/00007.tar"]
    assert (grown.facts["shards"], grown.facts["embedded"]) == (4, 1)


def test_killed_between_two_shards_it_repeats_none_that_was_published(scene, published, monkeypatch):
    sound = embedding.publish

    def killed(work, *rest):
        if len(published) == 2:
            raise KeyboardInterrupt
        return sound(work, *rest)

    with monkeypatch.context() as once:
        once.setattr(embedding, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            scene.clusters()
    assert len(published) == 2
    made, _ = scene.clusters()
    assert len(published) == 3 == len(set(published))
    assert made.facts["embedded"] == 1


def test_a_shard_that_was_replaced_since_is_named_and_what_was_embedded_still_serves(scene):
    scene.clusters()
    crawl_shard(scene.settings.home / "landing", PAIRS + 30, "web/00000.tar")
    assert publish_clusters(scene.storage, scene.accelerator, 2)[0].facts["embedded"] == 0
    for item in list(scene.store.list("image_embeddings/")):
        scene.store.delete(item.key)
    with pytest.raises(CompalignError, match=r"web/00000.tar"):
        publish_clusters(scene.storage, scene.accelerator, 3)
    batches.seal(scene.store, scene.storage.landing, max_shards=100)
    with pytest.raises(CompalignError, match="score_ledger"):
        publish_clusters(scene.storage, scene.accelerator, 3)


def test_the_planted_bug_of_a_scorer_that_mixes_up_images_turns_the_clusters_red(scene, monkeypatch):
    monkeypatch.setattr(embedding, "table_of", lambda names, vectors: table_of(names[::-1], vectors))
    made, _ = scene.clusters()
    table = parquet.read(made.fetch("assignment.parquet"))
    assert len({(int(row["key"]) % 4, row["cluster"]) for row in table.to_pylist()}) > 4


def test_the_asset_says_what_to_materialise_first(tmp_path):
    prepare(tmp_path / "home", shards=1)
    settings = load(home=tmp_path / "home", device="cpu")
    storage = build(settings).resources["storage"]
    with pytest.raises(CompalignError, match="Materialise score_ledger first"):
        semantic_clusters.publish_clusters(storage, Accelerator.from_settings(settings))
