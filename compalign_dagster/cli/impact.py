"""`compalign impact`: what hangs on a URL, a host, an image, a labeler, a batch or a model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from compalign_dagster.store import Store

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("impact")
@click.option("--url-host", metavar="HOST", help="A host and every host below it.")
@click.option("--url", metavar="URL", help="A URL as the crawl has it.")
@click.option("--image-hash", metavar="SHA256", help="SHA-256 of an image's bytes, hex.")
@click.option("--near", type=_FILE, metavar="IMAGE", help="Images that look like this file.")
@click.option("--bits", type=click.IntRange(0, 16), default=8, show_default=True, help="How far --near may be, of 64.")
@click.option("--labeler", metavar="NAME", help="Somebody whose judgements a model saw.")
@click.option("--batch", metavar="BATCH", help="A batch of the log, such as batch-00001.")
@click.option("--model", metavar="VERSION", help="Beginning of a model version.")
@click.option("--json", "as_json", is_flag=True, help="Write everything as JSON.")
def command(as_json: bool, bits: int, **asked: Any) -> None:
    r"""Say which pairs, versions of the dataset and models something touches. Nothing is changed.

    \b
    compalign impact --url-host example.com
    compalign impact --near picture.jpg --json
    compalign impact --labeler l-03
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        raise click.UsageError("Give one of --url-host, --url, --image-hash, --near, --labeler, --batch and --model.")
    from compalign_dagster.settings import load
    from resources.storage import Storage

    ((name, value),) = given.items()
    found = _found(Storage.from_settings(load()).store, name, value, bits)
    if as_json:
        click.echo(json.dumps({"asked": {name: str(value)}, **found}, indent=2, sort_keys=True))
        return
    for line in lines_of(found):
        click.echo(line)


def _found(store: "Store", name: str, value: Any, bits: int) -> dict[str, Any]:
    from compalign_dagster.lineage import impact
    from compalign_dagster.selection.blocks import entry

    whole = {"labeler": impact.of_labeler, "batch": impact.of_batch, "model": impact.of_model}
    if name in whole:
        return whole[name](store, value)
    if name == "near":
        one = entry("image_near", looks(value), request="impact", distance=bits)
    else:
        one = entry("image_sha256" if name == "image_hash" else name, value, request="impact")
    return impact.of_entries(store, [one])


def looks(path: Path) -> str:
    """The perceptual hash of an image file; `InputError` for a file that is no image."""
    from compalign_dagster import images
    from compalign_dagster.crawl.fingerprints import perceptual_hash
    from compalign_dagster.errors import InputError

    try:
        return perceptual_hash(images.inspect(path.read_bytes()).thumbnail)
    except images.ImageRejected as error:
        raise InputError(
            f"image {path}", expected="an image that can be decoded", found=error.detail, remedy="Give another file."
        ) from None


def lines_of(found: dict[str, Any]) -> list[str]:
    """What was found as text for a terminal."""
    from compalign_dagster.cli.terminal import aligned, table

    if "occurrences" in found:
        counts = f"{found['pairs']:,} pairs ({found['occurrences']:,} occurrences, {found['images']:,} images)"
        lines = [f"{counts} in {', '.join(found['batches']) or 'no batch'}"]
    else:
        lines = [f"up to {found['pairs']:,} pairs a version"]
        lines += [f"judged {one['images']} images of {one['annotations']}" for one in found.get("judged", ())]
    lines += [f"  {pair}" for pair in found["first_ids"]]
    rows = [(one["version"], one["created"], one["kept"], one["dropped"]) for one in found["versions"]]
    told = table(("version", "created", "kept", "dropped"), rows).splitlines() if rows else ["in no version"]
    for model in found["models"]:
        told.append(f"model {model['model_version'][:12]} {'; '.join(model.get('because', ()))}")
    lines += [*told, *([f"SQL (in the database of `compalign audit-db`): {found['sql']}"] if "sql" in found else [])]
    return list(map(aligned, lines))
