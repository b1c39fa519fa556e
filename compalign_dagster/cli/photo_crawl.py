"""`compalign photo-crawl`: make a noisy crawl of real photos from the data pack."""

from pathlib import Path

import click


@click.command("photo-crawl")
@click.option(
    "--datapack",
    required=True,
    type=click.Path(path_type=Path),
    help="Root folder of the data pack, the one with flickr8k/ and web_alt_text/ in it.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder for the crawl.")
@click.option("--seed", default=7, show_default=True, help="Decides which captions are spoiled, and by what.")
@click.option("--spoiled", default=0.7, show_default=True, type=float, help="Share of the captions to spoil, 0 to 1.")
@click.option("--images", type=int, help="Take only so many of the 6,000 photos.")
def photo_crawl(datapack: Path, out: Path, seed: int, spoiled: float, images: int | None) -> None:
    r"""Make a noisy crawl from the data pack's train photos, with real human judgements beside it.

    Images are copied byte for byte. Of the captions, the spoiled share is replaced: two thirds of it
    by another photo's caption, one third by real web alt text. The noise is injected, so the crawl
    says nothing about how noisy the web is. OUT gets landing/, labels/, evaluation/ and truth/.

    \b
    compalign photo-crawl --datapack DATAPACK --out var/photos
    compalign index --shards var/photos/landing --out var/index
    """
    from compalign_dagster.samples.photos import write_photo_crawl

    summary = write_photo_crawl(datapack, out, seed=seed, spoiled=spoiled, images=images)
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["captions_by_kind"].items())
    click.echo(f"{summary['images']} photos, {summary['captions']} captions ({kinds}) in {summary['shards']} shards")
    click.echo(f"landing: {out / 'landing'}")
    click.echo(f"labels: {out / 'labels'} ({summary['judged_images']['expert']} judged photos)")
    click.echo(f"evaluation: {out / 'evaluation'}")
