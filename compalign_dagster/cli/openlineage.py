"""`compalign openlineage`: a version's lineage for catalogues."""

from pathlib import Path

import click

from compalign_dagster.settings import load


@click.command("openlineage")
@click.argument("version", default="current")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="A file to write.  [default: standard output]"
)
def command(version: str, out: Path | None) -> None:
    r"""Write the lineage of a VERSION of the dataset as OpenLineage events, one line of JSON each.

    There is one event for each artifact behind the version, back to the landed shards and the label exports: what it
    was made of, its data version, and of the dataset how many pairs were kept and dropped, and why. Nothing is sent.
    The same store gives the same bytes, so that a catalogue takes an event that it has for the same run.

    \b
    compalign openlineage --out events.ndjson
    compalign openlineage 3f2a9c11 | head -1
    """
    from compalign_dagster.cli.files import unwritable
    from compalign_dagster.lineage.openlineage import lines
    from compalign_dagster.selection import versions
    from resources.storage import Storage

    found = lines(versions.resolve(Storage.from_settings(load()).store, version).artifact)
    if out is None:
        for line in found:
            click.echo(line)
        return
    try:
        with out.open("w") as stream:
            count = sum(1 for line in found if stream.write(f"{line}\n"))
    except OSError as error:
        raise unwritable(out, error) from error
    click.echo(f"{out}  {count:,} events")
