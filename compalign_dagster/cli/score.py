"""`compalign score`: one reward for every pair of shards."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compalign_dagster.cli import options
from compalign_dagster.scoring.config import PRECISIONS

if TYPE_CHECKING:
    import pyarrow as pa

    from compalign_dagster.crawl.index import ShardIndex
    from compalign_dagster.crawl.shards import Shard


@click.command("score")
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Model folder, from `compalign train`.")
@options.shards
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Parquet file to write.")
@options.features
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Where the model runs: cpu, cuda, cuda:1 (the second GPU), or auto, a GPU where there is one.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="fp32 is the reference. fp16 (GPU) and bf16 (GPU, recent CPU) are faster; they move few pairs across a cut, "
    "bf16 more than fp16.",
)
@click.option(
    "--batch-images",
    type=click.IntRange(1),
    help="Images encoded at once; changes speed and memory, no reward. Left out, what suits the device. Halved, with "
    "a warning, where memory runs out.",
)
@options.strict
def command(
    model: Path,
    patterns: tuple[str, ...],
    out: Path,
    features: Path | None,
    device: str,
    precision: str,
    batch_images: int | None,
    strict: bool,
) -> None:
    r"""Give every pair of the shards its reward: larger is better aligned.

    Shards are indexed on the way, one after the other. Captions found = rows in FILE.parquet +
    captions in FILE.quarantine.parquet.

    \b
    FILE.parquet             pair_id, shard, key, caption_index, caption, reward, model_version,
                             reward_std (how unsure the reward is), human_fit (probability that a
                             person says it fits), scores of single criteria, and the baselines the
                             model has: cosine, itm, label_free
    FILE.quarantine.parquet  what could not be read or scored: shard, key, offset, reason, detail, ...

    \b
    compalign score --model model/ --shards crawl/ --out scores.parquet
    """
    from compalign_dagster.cli.files import sidecar, table_file
    from compalign_dagster.cli.index import refuse_if_unreadable
    from compalign_dagster.cli.progress import show_progress
    from compalign_dagster.crawl.index import reasons_of
    from compalign_dagster.crawl.shards import find_shards
    from compalign_dagster.crawl.tables import QUARANTINE
    from compalign_dagster.scoring.tables import SCORES

    show_progress()
    found = find_shards(patterns)
    from compalign_dagster.reward.folder import load_model, model_version
    from compalign_dagster.reward.offline_encoders import remember_in
    from compalign_dagster.scoring.engine import Scorer, ScoringConfig

    version = model_version(model)
    remember_in(features)
    scorer = Scorer(
        load_model(model), version, ScoringConfig(precision=precision, device=device, batch_images=batch_images)
    )
    reasons: Counter[str] = Counter()
    summaries, rows = [], 0
    indexed: deque[ShardIndex] = deque()
    with table_file(out, SCORES) as scores, table_file(sidecar(out), QUARANTINE) as refused:
        for result in scorer.score_all(_jobs(found, indexed), progress=options.progress()):
            index = indexed.popleft()
            scores.write_table(result.scores)
            for quarantine in (index.quarantine, result.quarantine):
                refused.write_table(quarantine)
                reasons.update(reasons_of(quarantine))
            summaries.append(index.summary)
            rows += result.scores.num_rows
    click.echo(f"{rows:,} pairs of {len(found):,} shards scored by model {version[:12]}: {out}")
    click.echo(f"{sum(reasons.values()):,} rows quarantined: {sidecar(out)}")
    refuse_if_unreadable(summaries, reasons)
    if strict and reasons:
        raise SystemExit(1)


def _jobs(shards: "list[Shard]", indexed: "deque[ShardIndex]") -> "Iterator[tuple[Shard, pa.Table]]":
    """Each shard with its pairs; its whole index waits in `indexed` until its scores are there."""
    from compalign_dagster.crawl.index import index_shard

    for shard in shards:
        same = replace(shard, stamp=shard.store.stat(shard.key).stamp)  # or another file's pixels meet these captions
        indexed.append(index_shard(same))
        yield same, indexed[-1].pairs
