"""Memory of scoring many shards is that of a few; measured in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).parents[3]
MOST_GROWTH_MIB = 24
# Freed tensors go back to the system at once: what threads keep of them for later differs from run to run.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"}
SCORE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from compalign_dagster.crawl.index import index_shard
from compalign_dagster.scoring import feed
from compalign_dagster.scoring.engine import Scorer, ScoringConfig
from tests.support.memory import mib
from tests.support.scenes_shard import scenes_shard
from tests.unit.scoring.test_engine import Counting

folder, shards, unbounded = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "unbounded"
class Large(Counting):
    def prepare(self, image):
        return super().prepare(image).repeat(1, 32, 32, 1).flatten().repeat(64)  # 3 MiB

shard = scenes_shard(folder, 12, size=(96, 64))
pairs = index_shard(shard).pairs
if unbounded:
    feed._Line._fits = lambda self, size: True
scorer = Scorer(Large(), "v", ScoringConfig(batch_images=4, queue_images=4))
def jobs(count):
    return ((shard, pairs) for _ in range(count))
scorer.score(shard, pairs)
pairs_done = sum(len(found.scores) for found in scorer.score_all(jobs(shards)))
print(json.dumps([pairs_done, mib()]))
"""


def peak(folder, shards, bound="bounded"):
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), str(shards), bound],
        cwd=ROOT,
        env=os.environ | MALLOC,
        check=True,
        capture_output=True,
        text=True,
    )
    scored, found = json.loads(done.stdout.splitlines()[-1])
    assert scored == 12 * shards
    return found


def test_the_peak_is_flat_from_1_to_64_shards(tmp_path):
    one = peak(tmp_path, 1)
    assert peak(tmp_path, 64) - one < MOST_GROWTH_MIB
    assert peak(tmp_path, 64, "unbounded") - one > 2 * MOST_GROWTH_MIB, "the planted bug of a queue without bounds"
