"""`compalign takedown`: requests that pairs go, what they touch, and their purge."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import polars as pl

    from compalign_dagster.lineage.erase import Target
    from compalign_dagster.lineage.purge import Purged
    from compalign_dagster.settings import Settings
    from compalign_dagster.store import Store

_MOST_SHOWN = 20


@click.command("takedown")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--purge", is_flag=True, help="Also destroy bytes, captions and URLs. There is no way back.")
@click.option("--yes", is_flag=True, help="Purge without asking.")
@click.option("--dry-run", is_flag=True, help="Say what the request touches; record and change nothing.")
@click.option("--reason", metavar="TEXT", help="Why: recorded for those who ask later. Needed to record anything.")
@click.option("--by", metavar="NAME", help="Who decides.  [default: the user that runs this]")
@click.option("--withdraw", metavar="REQUEST", help="Take a request back; what was purged does not come back.")
@click.option("--list", "list_requests", is_flag=True, help="List the requests on record.")
@click.option("--json", "as_json", is_flag=True, help="Write what was done as JSON.")
def command(
    file: Path | None, purge: bool, yes: bool, dry_run: bool, reason: str | None, by: str | None,
    withdraw: str | None, list_requests: bool, as_json: bool,
) -> None:  # fmt: skip
    r"""Record a request that pairs go, block them from the next version on, and say which versions hold them.

    FILE is CSV or JSONL: kind, value, and optionally request (its name), reason, distance. Kinds: pair_id,
    image_sha256, url, url_host, image_near (a perceptual hash, 16 hex digits). Reasons: takedown,
    evaluation_overlap. The block list keeps no URL, only its SHA-256.

    --purge destroys whole images: it empties every caption and URL of them in the store's tables, deletes the
    pages that show them, and writes zeros over their samples in landed shards that are plain tars on a disk. It
    names what remains. Each file that it alters is recorded, and `compalign verify` then calls it redacted.

    \b
    kind,value,request
    url,https://example.com/a.jpg,ticket-1234
    url_host,photos.example.net,ticket-1234
    \b
    compalign takedown request.csv --dry-run
    compalign takedown request.csv --reason "ticket 1234" --purge
    compalign takedown --list
    """
    if sum((file is not None, bool(withdraw), list_requests)) != 1 or (purge and (file is None or dry_run)):
        raise click.UsageError("Give a FILE (with --purge or --dry-run), or one of --withdraw and --list.")
    if reason is None and not dry_run and not list_requests:
        raise click.UsageError("Missing option '--reason': say why, it is recorded. --dry-run needs none.")
    from compalign_dagster.lineage import impact, takedown
    from compalign_dagster.reward.promoted import Reason
    from compalign_dagster.settings import load
    from resources.storage import Storage

    settings = load()
    storage = Storage.from_settings(settings)
    store = storage.store
    if list_requests:
        _list(store)
        return
    if withdraw:
        takedown.withdraw(store, withdraw, Reason.given(by, reason or ""))
        click.echo("withdrawn: the next version may keep its pairs again")
        return
    assert file is not None, "the usage was checked"
    entries = takedown.read_request(file)
    if dry_run:
        told = impact.of_entries(store, entries)
    else:
        asked = Reason.given(by, reason or "")
        told = takedown.request(store, entries, asked)
        found = takedown.doomed(store, entries) if purge else None
        if found is not None and _agreed(found, yes):
            done, target = takedown.destroy(store, storage.landing, entries, asked, found=found)
            told["purged"] = _purged(done, [*done.remaining, *_traces(settings, target)])
    click.echo(json.dumps(told, indent=2, sort_keys=True) if as_json else "\n".join(_lines(told, dry_run)))


def _agreed(found: "pl.DataFrame", yes: bool) -> bool:
    what = f"{found['image_sha256'].n_unique():,} images with {found.height:,} captions"
    return yes or click.confirm(f"Destroy {what} for good?", err=True)


def _purged(done: "Purged", remaining: list[str]) -> dict[str, Any]:
    return {
        "files": len(done.changes),
        "deleted": sum(change.now is None for change in done.changes),
        "shards": sum(change.place == "landing" for change in done.changes),
        "rows_or_members": sum(change.rows for change in done.changes),
        "remaining": remaining,
    }


def _traces(settings: "Settings", target: "Target") -> Iterator[str]:
    """What the Dagster instance of the profile may still hold; it is no part of the store."""
    home = settings.dagster_home
    if not home.is_dir():
        return
    told = [text.encode() for text in target.texts if len(text) >= 8]
    for path in sorted(item for item in home.rglob("*") if item.is_file()):
        data = path.read_bytes()
        if any(text in data for text in told):
            yield f"{path} holds a caption or a URL: delete it, or wipe the runs that wrote it."
    yield (
        f"The event log in {home} keeps contact sheets of past runs, with small pictures: "
        "`dagster asset wipe raw_crawl filtered_dataset` removes them."
    )


def _list(store: "Store") -> None:
    from compalign_dagster.cli.terminal import plain
    from compalign_dagster.lineage.takedown import history

    made = history(store)
    for fact in made:
        value = fact.value
        names = sorted({item["request"] for item in value.get("entries", ())}) or [value.get("withdraws", "")]
        what = f"{len(value['entries'])} entries" if "entries" in value else f"{value.get('files', 0)} files"
        by = f"by {value['by']}: {value['why']}"
        click.echo(plain(f"{fact.version}  {fact.decided}  {value['action']}  {', '.join(names)}  {what}  {by}"))
    if not made:
        click.echo("nothing was ever requested")


def _lines(told: dict[str, Any], dry_run: bool) -> list[str]:
    from compalign_dagster.cli.impact import lines_of
    from compalign_dagster.cli.terminal import plain

    lines = lines_of(told)
    holding = [one["version"] for one in told["versions"] if one["kept"]]
    if holding:
        lines.append(f"kept by {len(holding)} versions: {', '.join(holding[:_MOST_SHOWN])}")
    if not dry_run:
        lines.append("blocked from the next version on: materialise filtered_dataset, and `compalign prune` old ones")
    if "purged" in told:
        done = told["purged"]
        lines.append(
            f"purged {done['rows_or_members']:,} rows and members in {done['files']:,} files: "
            f"{done['shards']:,} landed shards, {done['deleted']:,} pages deleted"
        )
        lines += [f"remains: {plain(text)}" for text in done["remaining"]]
    return lines
