"""A store with indexed shards and a small model that never trained, and the works of scoring them.

`prepare` makes it in a second or two, for tests that score in several processes: all of it lies in folders.
"""

from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

from compalign_dagster import artifacts, decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import indexed_shards
from compalign_dagster.reward.promoted import promoted
from compalign_dagster.scoring.config import ScoringConfig
from compalign_dagster.scoring.where import Where, score_works
from compalign_dagster.scoring.work import SHARD_KIND, Places, ShardWork, score_and_publish_all
from compalign_dagster.store import LocalStore
from tests.support.tiny_reward import crawl_shard, tiny_config, tiny_data

T = TypeVar("T")

BYTES = {"precision": "fp32"}
REFERENCE = ScoringConfig(device="cpu", threads=1, batch_images=1)  # one image at a time: slow enough to be killed


def prepare(home: Path, *, shards: int = 2, pairs: int = 6, batch_shards: int = 100) -> Path:
    """Landed, sealed and indexed shards, and a promoted model, below `home`."""
    from assets import raw_crawl
    from compalign_dagster.crawl import batches
    from compalign_dagster.reward.folder import model_version, save_model
    from compalign_dagster.reward.model import backbone
    from compalign_dagster.settings import load
    from resources.storage import Storage

    for at in range(shards):
        crawl_shard(home / "landing", pairs + at % 3, f"web/{at:05d}.tar")
    store = LocalStore(home / "store")
    folder = save_model(backbone("blip-tiny").build(tiny_config(), tiny_data(home / "judged")), home / "model")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    facts = {"model_version": model_version(folder)}
    made = artifacts.publish(store, "reward_model", "m" * 32, files, code_version=1, inputs=[], config={}, facts=facts)
    decisions.decide(store, "promoted_model", {"manifest": made.manifest_key, **facts}, after=0)
    batches.seal(store, LocalStore(home / "landing"), max_shards=batch_shards)
    storage = Storage.from_settings(load(home=home))
    for batch in batches.read_log(store):
        raw_crawl.index_batch(storage, batch, raw_crawl.Budgets())
    return home


def places_of(home: Path) -> Places:
    return Places(LocalStore(home / "store"), LocalStore(home / "landing"))


def works_of(home: Path, config: Mapping[str, Any] = BYTES) -> list[ShardWork]:
    """The work of every shard, in the order of their names, in a configuration that changes bytes."""
    places = places_of(home)
    model = promoted(places.store)
    return [ShardWork.of(item, places, model, config) for item in indexed_shards(places.store)]


def score_and_publish(scorer: Any, work: ShardWork, places: Places | None = None) -> Artifact:
    """Score one shard and publish its tables; what is there already, or was published meanwhile, is returned."""
    ((_, artifact),) = score_and_publish_all(scorer, [work], places)
    return artifact


def scored(home: Path, where: Where | None = None) -> dict[str, Artifact]:
    """Score everything that is not scored; shard and artifact, in the order in which they were finished."""
    found = score_works(works_of(home), REFERENCE, where)
    return {work.shard: artifact for work, artifact, _ in found}


def versions(found: dict[str, Artifact]) -> dict[str, str]:
    """The digest of what was published for each shard."""
    return {shard: artifact.data_version for shard, artifact in found.items()}


def manifests(home: Path) -> list[str]:
    """The keys of all publications of scored shards."""
    return [item.key for item in places_of(home).store.list(f"{SHARD_KIND}/") if item.key.endswith("/manifest.json")]


def travelled(value: T) -> T:
    """A value as another process receives it."""
    there, here = Pipe()
    there.send(value)
    return here.recv()
