"""Claims about the assets that can be false, one module per artifact."""

from assets.checks.coco_hf_annotations import judgements
from assets.checks.eval_report import report_is_sound
from assets.checks.filtered_dataset import dataset_meets_expectations, lineage_verifies
from assets.checks.raw_crawl import shards_and_pairs, usable_share
from assets.checks.reward_model import would_pass_the_gate
from assets.checks.score_ledger import a_model_covers_the_live_crawl, ledger_meets_expectations
from assets.checks.scored_shards import scores

ALL_CHECKS = [
    shards_and_pairs,
    usable_share,
    judgements,
    would_pass_the_gate,
    scores,
    ledger_meets_expectations,
    a_model_covers_the_live_crawl,
    dataset_meets_expectations,
    lineage_verifies,
    report_is_sound,
]
