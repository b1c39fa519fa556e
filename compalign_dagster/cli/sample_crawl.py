"""`compalign sample-crawl`: a deterministic crawl of rendered scenes, with simulated labelers."""

from pathlib import Path

import click

_COUNT = click.IntRange(1)


@click.command("sample-crawl")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0), help="Equal seeds give equal bytes.")
@click.option("--pairs", default=4000, show_default=True, type=_COUNT, help="Pairs in the crawl.")
@click.option(
    "--judged-images", default=1000, show_default=True, type=_COUNT, help="Images with human-like judgements."
)
@click.option("--evaluation-pairs", default=500, show_default=True, type=_COUNT, help="Clean held-out pairs.")
@click.option("--shard-pairs", default=500, show_default=True, type=_COUNT, help="Pairs in a shard.")
def command(out: Path, seed: int, pairs: int, judged_images: int, evaluation_pairs: int, shard_pairs: int) -> None:
    r"""Write a sample crawl: rendered scenes with captions of many qualities.

    It is made to try the pipeline on and says nothing about the web. Labelers are simulated.

    \b
    OUT/landing/      crawl shards, as img2dataset writes them, some of them damaged on purpose
    OUT/labels/       judgements.jsonl, and shards/ with the judged images
    OUT/evaluation/   clean held-out shards
    OUT/truth/        what each caption really is; for tests only

    \b
    compalign sample-crawl --out var/try
    compalign index --shards var/try/landing --out var/try/index
    compalign train --annotations var/try/labels/judgements.jsonl --shards var/try/labels/shards \
        --shards var/try/landing --out var/try/model
    """
    from compalign_dagster.samples.crawl import write_sample_crawl

    summary = write_sample_crawl(
        out,
        seed=seed,
        pairs=pairs,
        judged_images=judged_images,
        evaluation_pairs=evaluation_pairs,
        shard_pairs=shard_pairs,
    )
    if not summary["written"]:
        click.echo(f"{out} already holds this sample; nothing was written")
    click.echo(f"{summary['pairs']:,} pairs in {summary['shards']:,} shards: {out / 'landing'}")
    judged = f"{summary['judged_images']:,} judged images, {summary['comparisons']:,} comparisons"
    click.echo(f"{judged}: {out / 'labels'}")
    click.echo(f"{summary['evaluation_pairs']:,} clean held-out pairs: {out / 'evaluation'}")
