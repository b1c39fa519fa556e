"""The vectors of a shard's images, by the model that scores: made once, published, found again.

Nothing refers to what is published here but by its work key, so all of a model's vectors may be deleted: they are made
again when they are asked for. What does not belong here: what is made of vectors (`crawl/clusters.py`).
"""

import io
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.crawl.batches import ShardStamp
from compalign_dagster.crawl.clusters import table_of
from compalign_dagster.crawl.live import require_delivered
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Store
from compalign_dagster.versions import work_key

if TYPE_CHECKING:
    from compalign_dagster.scoring.engine import Scorer

Progress = Callable[[int, int, str], None]  # done, total, of what

KIND = "image_embeddings"
CODE_VERSION = 1
_COLUMNS = ["shard", "caption", "image_sha256", "image_offset", "image_length"]


@dataclass(frozen=True)
class EmbedWork:
    """The images of one indexed shard, to be embedded by one model; `config` is what else changes bytes."""

    shard: str
    pairs_key: str
    index_version: str
    model: Artifact
    config: Mapping[str, Any]
    delivery: ShardStamp | None  # the bytes that were indexed; None where the batch log knows none any more

    @property
    def partition(self) -> str:
        """Vectors of one model lie together."""
        return str(self.model.facts["model_version"])[:16]

    @property
    def key(self) -> str:
        """The work key."""
        inputs = [self.model.facts["model_version"], self.shard, self.index_version]
        return work_key(KIND, code_version=CODE_VERSION, inputs=inputs, config=self.config)

    def published(self) -> Artifact | None:
        """What was published of this work, or None."""
        return artifacts.find(self.model.store, KIND, self.key, self.partition)


def embed_and_publish(
    works: Sequence[EmbedWork], landing: Store, load: Callable[[], "Scorer"], progress: Progress
) -> int:
    """Publish the vectors of those works that have none yet, by one scorer; how many that were.

    Each is published as soon as it is made, so that whoever is killed repeats one shard. `load` is called only where
    something is to be made. Raises `CompalignError` for a shard that is not the delivery that was indexed.
    """
    missing = [work for work in works if work.published() is None]
    if not missing:
        return 0
    reading: deque[pa.Table] = deque()  # of the shards that the scorer has been handed, in order

    def jobs() -> Iterator[tuple[Shard, pa.Table]]:
        for work in missing:
            shard, images = _read(work, landing)
            reading.append(images)
            yield shard, images

    scorer = load()
    with closing(scorer.embed_all(jobs())) as results:  # its threads end with it
        for done, (work, (rows, vectors)) in enumerate(zip(missing, results, strict=True), start=1):
            images = reading.popleft()
            names = [str(name) for name in images["image_sha256"].take(rows).to_pylist()] if rows else []
            publish(work, table_of(names, vectors), images.num_rows, {"device": scorer.config.device})
            progress(done, len(missing), "shards embedded")
    return len(missing)


def publish(work: EmbedWork, table: pa.Table, images: int, facts: Mapping[str, Any]) -> Artifact:
    """Publish EMBEDDINGS of a shard that shows so many images."""
    store = work.model.store
    with tempfile.TemporaryDirectory() as folder:
        path = parquet.write(table, Path(folder, "embeddings.parquet"))
        return artifacts.publish(
            store,
            KIND,
            work.key,
            {path.name: path},
            code_version=CODE_VERSION,
            inputs=[Input("raw_crawl_shards", work.pairs_key, work.index_version), work.model.as_input()],
            config=work.config,
            facts={"images": table.num_rows, "refused": images - table.num_rows, **facts},
            partition=work.partition,
        )


def distinct_images(pairs: pa.Table) -> pa.Table:
    """One row for each image of a pair index, the first that shows it; images that a takedown purged are left out.

    A purge empties all captions of an image, and the index has no empty ones otherwise.
    """
    pairs = pairs.filter(pc.not_equal(pc.utf8_trim_whitespace(pairs["caption"]), pa.scalar("")))
    images = pairs["image_sha256"].to_numpy(zero_copy_only=False).astype(str)
    return pairs.take(np.sort(np.unique(images, return_index=True)[1]))


def _read(work: EmbedWork, landing: Store) -> tuple[Shard, pa.Table]:
    if work.delivery is None:
        raise CompalignError(
            f"shard {work.shard}",
            expected="the delivery that was indexed and scored",
            found="another one, or none",
            remedy="Run score_batch of the batches that came since, then materialise score_ledger and this again.",
        )
    require_delivered(landing, work.delivery)
    pairs = parquet.read(io.BytesIO(work.model.store.read(work.pairs_key)), _COLUMNS)
    return Shard(work.shard, landing, work.shard, work.delivery.stamp), distinct_images(pairs)
