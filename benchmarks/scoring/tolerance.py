"""How far every faster way to score lies from fp32 on one thread over whole images, on every kind of backbone.

    python -m benchmarks.scoring.tolerance

Untrained networks on pictures that differ little: their rewards lie close, so that rounding moves more ranks than it
does with a trained one. Writes the table of `docs/scoring.md`.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from compalign_dagster.crawl.index import index_shard
from compalign_dagster.markdown import table
from compalign_dagster.reward.blip import TinyBlipReward
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.dual import DualReward
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.scoring import engine
from compalign_dagster.scoring.engine import Scorer, ScoringConfig
from compalign_dagster.scoring.tolerance import Difference, difference
from tests.support.scenes_shard import caption, scenes_shard
from tests.support.tiny_dual import KINDS, tiny_dual
from tests.support.tiny_reward import tiny_config, tiny_data

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "scoring.md"
BEGIN, END = "<!-- written by python -m benchmarks.scoring.tolerance -->", "<!-- end of what it wrote -->"
IMAGES, CAPTIONS, KEEP = 300, 4, 0.3
REFERENCE = ScoringConfig(device="cpu", batch_images=1, decoders=1, threads=1)
WAYS = {  # what is asked for, and whether JPEGs are scaled while they are decoded
    "other batches": (replace(REFERENCE, batch_images=32), False),
    "two threads": (replace(REFERENCE, batch_images=32, threads=2, decoders=4), False),
    "scaled while decoding": (REFERENCE, True),
    "`fp16` (the rounding of a GPU, on a CPU)": (replace(REFERENCE, precision="fp16"), False),
    "`bf16`": (replace(REFERENCE, precision="bf16"), False),
}


def main() -> int:
    """Measure, write, print; the exit code."""
    found: dict[str, dict[str, Difference]] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory() as work:
        shard = scenes_shard(Path(work), IMAGES, CAPTIONS)
        pairs = index_shard(shard).pairs

        def rewards(model: RewardModel, config: ScoringConfig, scaled: bool) -> np.ndarray:
            used = copy.deepcopy(model)
            used.image_side = model.image_side if scaled else 0
            with patch.object(engine, "check_precision"):  # fp16 is refused on a CPU because it is slow there
                return Scorer(used, "v", config).score(shard, pairs).scores["reward"].to_numpy()

        for name, model in _models(Path(work)):
            reference = rewards(model, REFERENCE, scaled=False)
            for way, (config, scaled) in WAYS.items():
                found[way][name] = difference(reference, rewards(model, config, scaled), KEEP)
    (HERE / "tolerance.json").write_text(json.dumps(_plain(found), indent=1) + "\n")
    written = _table(found)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{rest.partition(END)[2]}")
    print(written)
    return 0


def _models(work: Path) -> Iterator[tuple[str, RewardModel]]:
    torch.manual_seed(0)
    tiny = tiny_config(image_size=64, patch_size=16, hidden_size=64, heads=4, vision_layers=2, text_layers=2)
    yield "BLIP", TinyBlipReward.build(tiny, tiny_data(work / "data"))
    for kind in KINDS:
        source = tiny_dual(kind, work / kind, map(caption, range(200)))
        torch.manual_seed(0)
        yield kind, DualReward.build(reward_config({"backbone": "dual", "model": str(source)}), None)  # type: ignore[arg-type]


def _plain(found: dict[str, dict[str, Difference]]) -> dict[str, dict[str, dict[str, float]]]:
    return {way: {name: vars(value) for name, value in given.items()} for way, given in found.items()}


def _table(found: dict[str, dict[str, Difference]]) -> str:
    names = list(next(iter(found.values())))
    rows = [
        [way, *(f"{given[name].correlation:.5f}; {given[name].changed:.2%}".replace("%", " %") for name in names)]
        for way, given in found.items()
    ]
    head = f"{IMAGES * CAPTIONS:,} pairs, the best {KEEP:.0%} kept: rank correlation; decisions changed"
    return table([head.replace("%", " %"), *names], rows)


if __name__ == "__main__":
    sys.exit(main())
