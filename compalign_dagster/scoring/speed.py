"""How fast shards were scored, on what, and what a million pairs cost: from the facts of their artifacts.

What does not belong here: measuring, which the engine (`engine.py`) and `usage.py` do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_MILLION = 1_000_000


def speed(shards: Sequence[Mapping[str, Any]], wall_seconds: float, hour_cost: float = 0.0) -> dict[str, Any]:
    """Figures of shards that were scored in one go, from their facts; empty when there are none.

    `pairs_per_second` is of all workers together and counts the loading of models; `device_seconds_per_million_pairs`
    is the time of one device at work, and `cost_per_million_pairs` that at `hour_cost` for an hour (None at 0).
    `stages` are shares of that time in which a stage was what the others waited for.
    """
    seconds = sum(shard["seconds"] for shard in shards)
    pairs = sum(shard["scored"] + shard.get("rejected", 0) + shard["quarantined"] for shard in shards)
    if not pairs or not seconds:
        return {}
    device_seconds = seconds / pairs * _MILLION
    stages = {name for shard in shards for name in shard["stages"]}
    return {
        "devices": ", ".join(sorted({shard["device"] for shard in shards})),
        "workers": len({shard["worker"] for shard in shards}),
        "pairs_scored": pairs,
        "wall_seconds": round(wall_seconds, 3),
        "pairs_per_second": round(pairs / wall_seconds, 1),
        "device_seconds_per_million_pairs": round(device_seconds, 1),
        "cost_per_million_pairs": round(device_seconds / 3600 * hour_cost, 4) if hour_cost else None,
        "stages": {name: _mean(shards, lambda shard, n=name: shard["stages"].get(n, 0.0)) for name in sorted(stages)},
        "cpu_seconds_per_second": _mean(shards, lambda shard: shard["cpu_seconds_per_second"]),
        "gpu_utilisation": _mean(shards, lambda shard: shard["gpu_utilisation"]),
        "batch_images": min(shard["batch_images"] for shard in shards),
        "halved": sum(shard["halved"] for shard in shards),
    }


def _mean(shards: Sequence[Mapping[str, Any]], value: Any) -> float | None:
    """The mean over the time that each shard took, of those that have a value."""
    found = [(value(shard), shard["seconds"]) for shard in shards]
    told = [(figure, seconds) for figure, seconds in found if figure is not None]
    total = sum(seconds for _, seconds in told)
    return round(sum(figure * seconds for figure, seconds in told) / total, 4) if total else None
