"""How a model came about, for the model folder; and the digests that name its data and its training.

What belongs here: facts that repeat when the training is repeated. What does not: held-out figures (`metrics.py`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pyarrow as pa
import torch
import transformers

from compalign_dagster.reward.config import CODE_VERSION, RewardConfig, sources
from compalign_dagster.reward.data import Place, TrainingData
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.versions import digest_json

_FORMAT = 1  # of checkpoints: raise it when a stage keeps other parts


def data_version(data: TrainingData) -> str:
    """64 hex digits over all tables: equal rows give equal digits, however the tables are chunked."""
    digest = hashlib.sha256()
    for field in fields(data):
        table = getattr(data, field.name)
        if isinstance(table, pa.Table):
            digest.update(f"{field.name} {table.num_rows}".encode())
            for column in table.schema.names:
                digest.update(f"{column} {table.schema.field(column).type}".encode())
                values = pa.concat_arrays([pa.array([], table[column].type), *table[column].chunks])
                digest.update(pa.record_batch([values], [column]).serialize())
    return digest.hexdigest()


def work_of(config: RewardConfig, data: str, device: str) -> str:
    """64 hex digits over all that decides a training's bytes: a checkpoint serves nothing else."""
    own = {name: value for name, value in config.as_dict().items() if name not in ("checkpoint_every", "cache_mib")}
    return digest_json([_FORMAT, CODE_VERSION, own, data, device, torch.__version__, transformers.__version__])


def record_of(
    model: RewardModel,
    data: TrainingData,
    version: str,
    counts: Mapping[str, int],
    curves: Mapping[str, Any],
    rejected: Mapping[Place, str],
) -> dict[str, Any]:
    """JSON values. `version` is the `data_version`; `curves` are losses and validations by name."""
    config = model.config
    return {
        "code_version": CODE_VERSION,
        "code_versions": {"training": CODE_VERSION},
        "config": config.as_dict(),
        "provenance_of_defaults": sources(config),
        "provenance": model.provenance(),
        "seeds": {"training": config.seed, "held_out_figures": config.seed},
        "data_version": version,
        "data": {
            "labelers": len(data.comparisons["labeler"].unique()),
            "guideline_versions": sorted(filter(None, data.ranks["guideline"].unique().to_pylist())),
            "crawl_pairs_offered": data.crawl.num_rows,
        },
        "labeler_weights": dict(config.labeler_weights),
        "counts": dict(counts),
        "curves": dict(curves),
        "rejected_images": [
            {"shard": place[0], "offset": place[1], "reason": reason} for place, reason in sorted(rejected.items())
        ],
        "environment": {
            "device": model.device.type,
            "precision": config.precision,
            "processes": config.processes,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
