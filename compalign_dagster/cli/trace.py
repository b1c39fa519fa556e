"""`compalign trace`: everything the store knows of one pair."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from compalign_dagster.lineage.trace import RunOf
    from compalign_dagster.settings import Settings


@click.command("trace")
@click.argument("pair_id", required=False)
@click.option("--url", metavar="URL", help="The URL as the crawl has it.")
@click.option("--shard", metavar="NAME", help="Name of a shard, with --key.")
@click.option("--key", metavar="KEY", help="Key of a sample in the shard.")
@click.option(
    "--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file with the image's bytes."
)
@click.option("--json", "as_json", is_flag=True, help="Write everything as JSON.")
def command(
    pair_id: str | None, url: str | None, shard: str | None, key: str | None, image: Path | None, as_json: bool
) -> None:
    r"""Say where a pair comes from and what every version of the dataset decided about it.

    Place and hash of the raw bytes, every score, the cut in force, the decision with its reason, the model
    with its training data and its promotion, code versions, runs. From the files of the store alone; only the
    runs are known to the Dagster instance of this profile, where there is one.

    \b
    compalign trace 0f3a5c7e9b1d2f4a6c8e0b2d4f6a8c0e
    compalign trace --url https://example.com/a.jpg --json
    compalign trace --shard cc12m/00017.tar --key 000171234
    compalign trace --image picture.jpg
    """
    if sum((bool(pair_id), bool(url), bool(shard and key), image is not None)) != 1 or bool(shard) != bool(key):
        raise click.UsageError("Give a pair id, or one of --url, --shard with --key, and --image.")
    from compalign_dagster.lineage.trace import Sought, trace
    from compalign_dagster.selection.blocks import entry
    from compalign_dagster.settings import load
    from compalign_dagster.versions import digest_file
    from resources.storage import Storage

    settings = load()
    if pair_id:
        pair_id = entry("pair_id", pair_id, request="trace").value
    sought = Sought(pair_id, url, shard, key, digest_file(image) if image else None)
    found = trace(Storage.from_settings(settings).store, sought, run_of=runs(settings))
    if as_json:
        click.echo(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=True))
        return
    for line in lines_of(found):
        click.echo(line)


def runs(settings: "Settings") -> "RunOf":
    """How to find the run that first materialised an artifact, in the Dagster instance of the profile."""
    if not settings.dagster_home.is_dir():
        return lambda _: None
    import dagster as dg

    from compalign_dagster.cli.instance import prepare
    from sensors.landing import DATA_VERSION_TAG

    prepare(settings)
    instance = dg.DagsterInstance.get()

    def run_of(artifact: Any) -> str | None:
        wanted = dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(artifact.kind),
            asset_partitions=[artifact.partition] if artifact.partition else None,
        )
        made = instance.fetch_materializations(wanted, limit=1000, ascending=True).records
        for record in made:
            event = record.asset_materialization
            if event is not None and (event.tags or {}).get(DATA_VERSION_TAG) == artifact.data_version:
                return record.run_id or None
        return None

    return run_of


def lines_of(found: dict[str, Any]) -> list[str]:
    """A trace as text for a terminal."""
    from compalign_dagster.cli.terminal import aligned

    lines = [f"{found['found']} occurrence(s) in {found['store']}"]
    for pair in found["pairs"]:
        lines += ["", *_pair(pair)]
        for version in pair["versions"]:
            lines += _version(version)
        if not pair["versions"]:
            lines.append("  in no version of the dataset")
    for model in found["models"]:
        lines += ["", *_model(model)]
    return list(map(aligned, lines))


def _pair(pair: dict[str, Any]) -> list[str]:
    image, landed = pair["image"], pair["landed"]
    size = f"{image['width']} x {image['height']} {image['format']}"
    blocked = pair["blocked"]
    return [
        f"pair {pair['pair_id']}",
        f"  occurrence  {pair['shard']}, sample {pair['key']}, caption {pair['caption_index']} ({pair['corpus']})",
        f"  caption     {pair['caption'] or '(empty)'}",
        f"  URL         {pair['url'] or '(none)'}",
        f"  image       {image['length']} bytes at {image['offset']}, {size}",
        f"              sha256 {image['sha256']}",
        f"  landed      {landed['shard']}, {landed['bytes']} bytes, {'live' if landed['live'] else 'not live'}",
        f"              sha256 {landed['sha256']}, {landed['batch']}",
        f"  index       {_made(pair['index'])}",
        *([f"  BLOCKED     {blocked['reason']}, request {blocked['request']}"] if blocked else []),
        *([f"  REDACTED    on request {', '.join(pair['redacted'])}"] if pair["redacted"] else []),
        *(
            f"  judged      by {one['labeler']}, guideline {one['guideline']}, in {one['annotations']}"
            for one in pair["judgements"]
        ),
    ]


def _version(version: dict[str, Any]) -> list[str]:
    cut, scores = version["cut"], version["scores"]
    why = f": {version['reason']} ({version['meaning']})" if version["reason"] else ""
    limit = "nothing is kept" if cut["cut"] is None else f"from reward {cut['cut']:.4f}"
    figures = "none: a cascade turned it down" if scores is None else ""
    return [
        f"  version {version['version']}  {version['created']}  {version['decision'].upper()}{why}",
        f"    cut       {cut['kept']} of {cut['n']} pairs of budget {cut['budget']}, {limit}",
        f"    scores    {figures or ', '.join(f'{name} {value:.4f}' for name, value in scores.items())}",
        f"    model     {version['model_version']}",
        *(
            f"    policy    {one['policy']}, {one['decided'] or 'from the settings'}, by {one['by']}: {one['why']}"
            for one in version["policy_adopted"]
        ),
        *(f"    current   {one['decided']} ({one['decision']}), {_by(one)}" for one in version["current"]),
        *(f"    made by   {_made(one)}" for one in version["made_by"]),
    ]


def _by(one: dict[str, Any]) -> str:
    return ", by ".join(filter(None, (one["action"], one["by"])))


def _made(one: dict[str, Any] | None) -> str:
    if one is None:
        return "its manifest is gone"
    run = f"run {one['run']}" if one["run"] != "not recorded" else "run not recorded"
    return f"{one['manifest']}, code version {one['code_version']}, {one['created']}, {run}"


def _model(model: dict[str, Any]) -> list[str]:
    lines = [
        f"model {model['model_version']}",
        f"  {model['manifest'] or 'its files are gone'}, {model['backbone']}, code version {model['code_version']}",
    ]
    for item in model["trained_on"]:
        lines.append(f"  trained on  {item['key']}")
        if "images_by_labeler" in item:
            who = ", ".join(f"{name} {count}" for name, count in item["images_by_labeler"].items())
            lines.append(
                f"              {item['images']} images judged by {who}; guidelines {', '.join(item['guidelines'])}"
            )
            lines += [f"              from {one['file']}, sha256 {one['sha256']}" for one in item["exports"]]
    for one in model["promotions"]:
        lines.append(f"  {one['action']:<10}  {one['decided']} by {one['by']}: {one['why']} ({one['decision']})")
    return lines
