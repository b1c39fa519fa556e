"""A random sample of the crawl, scored before anything is decided: what a cascade's plan and a shadow report share.

What does not belong here: how the sample is drawn, and what follows from its rewards (`scoring/`).
"""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets import keys
from assets.needs import SCORING
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import IndexedShard, indexed_shards
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import CompalignError
from compalign_dagster.selection.in_force import first_policy, in_force_or
from compalign_dagster.selection.policy import Policy
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store
from resources.accelerator import Accelerator
from resources.storage import Storage

if TYPE_CHECKING:
    import numpy as np

    from compalign_dagster.scoring.sampling import Sample

FRAME: dict[str, Any] = {
    "group_name": keys.REFEREE_GROUP,
    "owners": keys.OWNERS,
    "pool": SCORING.dagster_pool(),
    "op_tags": SCORING.k8s_op_tags(),
}
"""Of an asset that scores a sample."""

log = logging.getLogger(f"compalign_dagster.{__name__}")


def scene(store: Store, settings: Settings) -> tuple[list[IndexedShard], Policy]:
    """What is drawn from, and the policy that would keep of it; `CompalignError` where nothing is indexed."""
    shards = indexed_shards(store)
    if not shards:
        raise CompalignError(
            f"crawl in {store.url}",
            expected="at least one indexed shard to draw a sample from",
            found="none",
            remedy="Land and index a batch first.",
        )
    return shards, in_force_or(store, first_policy(settings))


def score_drawn(
    storage: Storage, accelerator: Accelerator, model: Artifact, sample: "Sample", shards: list[IndexedShard]
) -> tuple["np.ndarray", float, dict[str, int]]:
    """Rewards of a sample of the crawl by this model, as `scoring.shadow.score_sample`."""
    from compalign_dagster.reward.folder import load_model
    from compalign_dagster.scoring.engine import ScoringConfig
    from compalign_dagster.scoring.shadow import score_sample

    log.info(
        "sample of the crawl: scoring %d pairs with model %s", len(sample.pairs), model.facts["model_version"][:12]
    )
    config = ScoringConfig(
        precision=accelerator.precision,
        image_pixels=accelerator.image_pixels,
        device=accelerator.pick(),
        batch_images=accelerator.batch_images,
    )
    landed = {item.shard: Shard(item.shard, storage.landing, item.shard, item.delivery.stamp) for item in shards}
    with tempfile.TemporaryDirectory() as folder:
        network = load_model(model.checkout(Path(folder, "model")), device=accelerator.pick())
        return score_sample(network, model.facts["model_version"], sample, landed, config)
