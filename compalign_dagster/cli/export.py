"""`compalign export`: a version of the dataset as files, for those who have no store."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import load

if TYPE_CHECKING:
    from compalign_dagster.selection.version import Version

_FORMATS = ("parquet", "uids", "tars", "croissant", "card")


@click.command("export")
@click.option(
    "--dataset",
    "name",
    metavar="VERSION",
    default="current",
    show_default=True,
    help="The beginning of a version's work key, its manifest key, or `current`.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write into; it is made."
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(_FORMATS),
    multiple=True,
    default=("parquet",),
    show_default=True,
    help="What to write. May be repeated.",
)
@click.option("--dropped", is_flag=True, help="Also write dropped.parquet: every dropped pair with its reason.")
@click.option(
    "--per-shard", type=click.IntRange(1), default=10_000, show_default=True, help="Most images of a tar (tars)."
)
def command(name: str, out: Path, formats: tuple[str, ...], dropped: bool, per_shard: int) -> None:
    r"""Write a version of the dataset of this profile's store as files.

    \b
    parquet    kept.parquet: each kept pair with its caption, shard, and place in it
    uids       uids.npy: the pair_ids as sorted 128-bit numbers (numpy u8,u8), as DataComp's tools read them
    tars       shards/NNNNN.tar: kept images, byte for byte, with their captions, as webdataset shards
    croissant  croissant.json: a description for dataset tools, and kept.parquet
    card       README.md: where it comes from, what was dropped and why, limits, how to load it; with plots

    export.json says what was written, with digests. Nothing is held in memory but a batch and a shard of it.

    \b
    compalign export --out dataset/
    compalign export --dataset 3f2a9c11 --out dataset/ --format croissant --format card --dropped
    """
    from compalign_dagster.cli.files import unwritable
    from compalign_dagster.selection import versions
    from compalign_dagster.selection.exporting import export
    from resources.storage import Storage

    storage = Storage.from_settings(load())
    version = versions.resolve(storage.store, name)
    try:
        made = export(
            version, out, formats, landing=storage.landing, dropped=dropped, per_shard=per_shard, plots=_plots
        )
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(out):
            raise
        raise unwritable(out, error) from error
    click.echo(f"version {version.artifact.work_key[:12]}: {version.facts['kept']:,} pairs")
    for path, entry in made["files"].items():
        click.echo(
            f"{out / path}  {entry['bytes']:,} bytes" + (f", {entry['records']:,} rows" if "records" in entry else "")
        )


def _plots(version: "Version") -> Mapping[str, tuple[bytes, str]]:
    from compalign_dagster.pages import plots
    from compalign_dagster.pages.filtered import histogram_picture, steps_of
    from compalign_dagster.selection.ladder import histogram

    facts = version.facts
    counts = histogram(version)
    steps = steps_of(facts)
    drawn = {
        "reasons.png": (
            plots.draw_png(lambda figure: plots.waterfall(figure, steps, facts["kept"])),
            "From all pairs to the kept ones, by reason.",
        )
    }
    if len(counts["edges"]) > 1:
        drawn["rewards.png"] = (histogram_picture(counts, facts), "Pairs by reward, kept and dropped, with the cut.")
    return drawn
