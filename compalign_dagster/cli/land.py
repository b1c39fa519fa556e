"""`compalign land`: bring a crawl into the landing folder, from img2dataset's parquet output or a list of URLs."""

from collections import Counter
from pathlib import Path
from typing import Any

import click


@click.command("land")
@click.option(
    "--parquet",
    "patterns",
    metavar="GLOB",
    multiple=True,
    help="What img2dataset wrote with output_format=parquet: files, a folder or a quoted glob. May be repeated.",
)
@click.option(
    "--urls", type=click.Path(path_type=Path), metavar="FILE", help="A list to fetch: .parquet, .csv, .tsv or .txt."
)
@click.option("--url-col", default="url", show_default=True, help="Column of the URLs; txt has one a line.")
@click.option("--caption-col", help="Column of the captions.")
@click.option("--shard-rows", type=click.IntRange(1), default=10_000, show_default=True, help="URLs in a shard.")
@click.option("--threads", type=click.IntRange(1), default=64, show_default=True, help="Answers awaited at a time.")
@click.option("--seconds", type=click.FloatRange(1), default=60, show_default=True, help="Longest time for an answer.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/land"),
    show_default=True,
    help="Folder for unfinished downloads.",
)
@click.option(
    "--img2dataset",
    type=click.Path(path_type=Path),
    default=Path(".venv-img2dataset/bin/python"),
    show_default=True,
    help="Python of an environment that has img2dataset: `make img2dataset`.",
)
@click.option(
    "--allow-private",
    is_flag=True,
    help="For tests only: fetch from private and loopback addresses too. A list from outside could then read "
    "what only this machine can reach.",
)
@click.option("--out", required=True, metavar="FOLDER", help="Landing folder of the corpus, or its s3:// prefix.")
@click.option("--member-bytes", type=click.IntRange(1), default=64 << 20, show_default=True, help="Largest image.")
@click.option("--strict", is_flag=True, help="Leave with exit code 1 when any row was refused.")
def command(patterns: tuple[str, ...], urls: Path | None, out: str, strict: bool, work: Path, **fetching: Any) -> None:
    r"""Make webdataset tars of crawled rows, image and caption bytes untouched; every row is accounted for.

    With --urls, img2dataset fetches the list first. Only http and https to public addresses are fetched, each
    judged when it is connected to, redirects too; everything else is refused. Run an interrupted command
    again: it goes on, and what is landed is not fetched again.

    \b
    OUT/NAME.tar              KEY.jpg, KEY.txt, KEY.json for each row; it appears whole, and last
    OUT/NAME.refused.parquet  one row for each row refused: row, key, url, reason, detail
    OUT/NAME_stats.json       count = successes + refused, by reason

    Reasons: http_404 (and other codes), timed_out, unreachable, address_refused, scheme_refused, too_large,
    cut_short, disallowed_by_robots_tag, hash_mismatch, url_missing, url_unusable, image_missing, key_unusable,
    duplicate_key, unreadable, not_reported, failed.

    \b
    compalign land --parquet 'downloads/*.parquet' --out landing/cc12m
    compalign land --urls cc12m.tsv --caption-col caption --out landing/cc12m
    """
    from compalign_dagster.cli.files import find_tables
    from compalign_dagster.crawl.parquet_shards import land_file
    from compalign_dagster.landing.download import Fetching, land_list
    from compalign_dagster.store import open_store

    if bool(patterns) == bool(urls):
        raise click.UsageError("Give one of --parquet and --urls.")
    landing, member_bytes = open_store(out), fetching["member_bytes"]
    if urls:
        how = Fetching(python=fetching.pop("img2dataset"), **fetching)
        report(out, land_list(urls, landing, work, how), strict)
        return
    files = named_once(find_tables(patterns, "files"))
    report(out, [land_file(path, landing, member_bytes=member_bytes) for path in files], strict)


def named_once(files: list[Path]) -> list[Path]:
    """The files; an error when two of them would give one tar."""
    from compalign_dagster.errors import InputError

    for name, count in Counter(path.name for path in files).items():
        if count > 1:
            raise InputError(
                f"file name {name!r}",
                expected="one file of that name",
                found=f"{count}",
                remedy="Land them one folder at a time, each into a folder of its own.",
            )
    return sorted(files, key=lambda path: path.name)


def report(out: str, landed: list, strict: bool) -> None:
    """Say what was landed and refused; exit code 1 under `--strict` when anything was refused."""
    rows, written = sum(item.rows for item in landed), sum(item.written for item in landed)
    refused: Counter[str] = sum((item.refused for item in landed), Counter())
    click.echo(f"{written:,} of {rows:,} rows in {sum(item.written > 0 for item in landed):,} shards: {out}")
    if landed and all(item.already_there for item in landed):
        click.echo("  all of it was landed before")
    for reason, count in sorted(refused.items(), key=lambda item: (-item[1], item[0])):
        click.echo(f"  {count:,} refused: {reason}")
    for name in sorted({name for item in landed for name in item.columns_left_out}):
        click.echo(f"  column {name!r} left out: it has no JSON type")
    if strict and refused:
        raise SystemExit(1)
