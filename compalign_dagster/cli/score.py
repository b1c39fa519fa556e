"""`compalign score`: one reward for every pair of shards."""

from collections import Counter
from pathlib import Path

import click

from compalign_dagster.cli import options


@click.command("score")
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Model folder, from `compalign train`.")
@options.shards
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Parquet file to write.")
@options.device
@click.option(
    "--batch-images",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Images encoded at once; changes speed and memory, no reward.",
)
@options.strict
def command(model: Path, patterns: tuple[str, ...], out: Path, device: str, batch_images: int, strict: bool) -> None:
    r"""Give every pair of the shards its reward: larger is better aligned.

    Shards are indexed on the way, one after the other. Captions found = rows in FILE.parquet +
    captions in FILE.quarantine.parquet.

    \b
    FILE.parquet             pair_id, shard, key, caption_index, caption, reward, model_version,
                             human_fit (probability that a person says it fits), scores of single
                             criteria, and the baselines the model has: cosine, itm, label_free
    FILE.quarantine.parquet  what could not be read or scored: shard, key, offset, reason, detail, ...

    \b
    compalign score --model model/ --shards crawl/ --out scores.parquet
    """
    from compalign_dagster.cli.files import sidecar, table_file
    from compalign_dagster.cli.index import refuse_if_unreadable
    from compalign_dagster.cli.progress import show_progress
    from compalign_dagster.compute import pick_device
    from compalign_dagster.crawl.index import index_shard, reasons_of
    from compalign_dagster.crawl.shards import find_shards
    from compalign_dagster.crawl.tables import QUARANTINE
    from compalign_dagster.scoring.tables import SCORES

    show_progress()
    found = find_shards(patterns)
    from compalign_dagster.reward.folder import load_model, model_version
    from compalign_dagster.scoring.engine import ScoringConfig, score_shard

    version = model_version(model)
    network = load_model(model, device=pick_device(device))
    config = ScoringConfig(device=device, batch_images=batch_images)
    reasons: Counter[str] = Counter()
    summaries, rows = [], 0
    report = options.progress()
    with table_file(out, SCORES) as scores, table_file(sidecar(out), QUARANTINE) as refused:
        for shard in found:
            index = index_shard(shard)
            result = score_shard(network, version, shard, index.pairs, config, progress=report)
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
