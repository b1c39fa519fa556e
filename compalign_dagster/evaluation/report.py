"""The evaluation of a filtered dataset and of the reward model behind it, as JSON values.

What belongs here: putting agreement, leakage and the downstream comparison together. What does not:
any of their figures, and the page that shows them.
"""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster.crawl.shards import Shard
from compalign_dagster.evaluation import inputs
from compalign_dagster.evaluation.agreement import Scores, agreement, labeler_agreement
from compalign_dagster.evaluation.downstream import DownstreamConfig, compare, drawn_rows, make_arms
from compalign_dagster.evaluation.leakage import remove_leaked
from compalign_dagster.selection.reasons import OF_BLOCK_LIST
from compalign_dagster.selection.select import OCCURRENCE, TIE_BREAK
from compalign_dagster.selection.version import Version

CODE_VERSION = 1

Progress = Callable[[int, int, str], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filtered:
    """The version that is evaluated, and the shards it decided on."""

    version: Version
    shards: Mapping[str, Shard]


@dataclass(frozen=True)
class Judged:
    """Held-out judgements: annotation tables, scores of the test split by scorer, images left out.

    `moved`: judgements moved the network that gives the reward's baselines too.
    """

    images: pa.Table
    captions: pa.Table
    comparisons: pa.Table
    scores: Mapping[str, Scores]
    undecodable: int = 0
    moved: bool = False


def evaluate(
    filtered: Filtered,
    judged: Judged,
    evaluation: Sequence[Shard],
    config: DownstreamConfig,
    *,
    seed: int = 7,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """The report: `agreement`, `ceiling`, `labelers`, `downstream`, `leakage`, `notes`; JSON values.

    Evaluation images that are also in the crawl or among the judged images are left out and counted, so
    that no figure is of an image something was trained on. Every estimate is `{value, low, high, n}`.
    """
    compared = held_out(judged)
    people = labeler_agreement(compared, seed=seed)
    downstream, leakage = retrieval(filtered, judged, evaluation, config, progress=progress)
    return {
        "agreement": agreement(compared, judged.captions, judged.scores, seed=seed),
        "ceiling": people["ceiling"],
        "labelers": people["labelers"],
        "judged": {
            "test_images": pc.count_distinct(compared["image_id"]).as_py(),
            "comparisons": compared.num_rows,
            "ties": int(pc.sum(compared["tie"]).as_py() or 0),
            "undecodable_images": judged.undecodable,
        },
        "downstream": downstream,
        "leakage": leakage,
        "notes": _notes(downstream, leakage, judged.moved),
    }


def held_out(judged: Judged) -> pa.Table:
    """The comparisons of test images that were scored."""
    scored = {image_id for scores in judged.scores.values() for image_id, _ in scores}
    images = judged.images.select(["image_id", "split"]).to_pylist()
    wanted = [row["image_id"] for row in images if row["split"] == "test" and row["image_id"] in scored]
    return judged.comparisons.filter(pc.is_in(judged.comparisons["image_id"], pa.array(wanted, pa.string())))


def retrieval(
    filtered: Filtered,
    judged: Judged,
    evaluation: Sequence[Shard],
    config: DownstreamConfig,
    *,
    progress: Progress = lambda done, total, what: None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The downstream comparison and the leakage that was removed before it."""
    table = crawl_table(filtered.version)
    arms = make_arms(table, config.seeds)
    found, refused = inputs.index_evaluation(evaluation)
    kept = table.filter("kept")["image_sha256"]
    others = {
        "kept": kept.to_list(),
        "crawl": table["image_sha256"].to_list(),
        "judged": judged.images["image_id"].to_pylist(),
    }
    leakage = remove_leaked(found, others)
    encoders = inputs.pixel_encoders(config.image_px) if config.images == "pixels" else inputs.frozen_encoders()
    test, undecodable = inputs.held_out_pairs(leakage.clean, evaluation, encoders)
    train = inputs.training_pairs(table, drawn_rows(arms, config), filtered.shards, encoders, progress=progress)
    facts = {
        "leaked_images": leakage.counts(),
        "evaluation_pairs": found.num_rows,
        "removed_pairs": found.num_rows - leakage.clean.num_rows,
        "quarantined": refused,
        "undecodable_images": undecodable,
    }
    return compare(train, arms, test, config, progress=progress), facts


def crawl_table(version: Version) -> pl.DataFrame:
    """The pairs that a version decided on, by (shard, key, caption_index), in memory.

    Columns: the tie-break's, `corpus, reward, image_offset, image_length, caption, image_sha256, cosine` (null where
    a cascade left no score), `budget, kept`. Pairs on the block list are left out: nothing may be trained on them.
    """
    read = ["corpus", "reward", "image_offset", "image_length"]
    decided = [version.decided(batch, [*TIE_BREAK, *read]) for batch in version.batches()]
    table = pl.concat(decided).filter(pl.col("reason").is_in(OF_BLOCK_LIST).not_() | pl.col("reason").is_null())
    for key, columns in (("pairs_key", ["caption", "image_sha256"]), ("scores_key", ["cosine"])):
        files = [io.BytesIO(version.store.read(name)) for name in version.shard_keys[key]]
        found = pl.concat([pl.read_parquet(file, columns=[*TIE_BREAK, *columns]) for file in files])
        table = table.join(found, on=TIE_BREAK, how="left")
    budgets = {name: version.policy.budget_of(name) for name in table["corpus"].unique()}
    return (
        table.with_columns(
            budget=pl.col("corpus").replace_strict(budgets, return_dtype=pl.String),
            kept=pl.col("reason").is_null(),
        )
        .drop("row", "reason")
        .sort(OCCURRENCE)
    )


def _notes(downstream: Mapping[str, Any], leakage: Mapping[str, Any], moved: bool) -> list[str]:
    notes = [
        "A retrieved caption counts as right when it reads like one of the image's own captions.",
        f"Every training set got the same network, {downstream['steps']} steps of "
        f"{downstream['batch']} pairs and {downstream['seeds']} training seeds; intervals cover test "
        "images and seeds.",
        "The filtered sets are of equal size, within each budget of the policy.",
    ]
    if moved:
        notes.append(
            "Cosine and ITM, also of the cosine-filtered set, are those of the network after judgements moved it; "
            "the reward model's own page has its agreement with people beside those from before."
        )
    if "cosine" not in downstream["arms"]:
        notes.append("No cosine-filtered set: the model in use gives no cosine for some pairs.")
    if leakage["removed_pairs"]:
        notes.append(f"{leakage['removed_pairs']} evaluation pairs were left out: their images were trained on.")
    return notes
