"""`compalign replay-quarantine`: after a fix, read again only the shards that it may help."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compalign_dagster.cli import options

if TYPE_CHECKING:
    from compalign_dagster.crawl.index import ShardIndex
    from compalign_dagster.crawl.shards import Shard

_AS_INDEXED = "as in the index"


@click.command("replay-quarantine")
@click.option("--index", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of an index.")
@options.shards
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    help="Retry what was refused for this reason. May be repeated.  [default: every reason that a fix may take away]",
)
@options.budgets(*[_AS_INDEXED] * 5)
@options.strict
def command(
    index: Path, patterns: tuple[str, ...], out: Path, reasons: tuple[str, ...], strict: bool, **limits: int | None
) -> None:
    r"""Retry what `compalign index` refused, after a newer release, with larger budgets or new deliveries.

    Only shards with such refusals, and shards whose size is another one by now, are read; the rest is
    copied. OUT is a whole index again. Its summary.json says per reason what was recovered and what
    remains. Give the --shards that were given to `compalign index`.

    \b
    compalign replay-quarantine --index index/ --shards crawl/ --out index-2/
    compalign replay-quarantine --index index/ --shards crawl/ --out index-2/ \\
        --reason image_too_large --image-pixels 400000000
    """
    from compalign_dagster.cli.index import write_index
    from compalign_dagster.cli.progress import show_progress
    from compalign_dagster.crawl.index import Budgets, ShardIndex, index_shard, reasons_of
    from compalign_dagster.crawl.replay import (
        ShardRows,
        chosen_reasons,
        is_chosen,
        recovery,
        recovery_lines,
        require_shards,
    )
    from compalign_dagster.crawl.shards import find_shards
    from compalign_dagster.crawl.tables import PAIRS, QUARANTINE

    show_progress()
    wanted = chosen_reasons(reasons)
    summary = _summary(index)
    budgets = Budgets(**{**summary["budgets"], **{name: value for name, value in limits.items() if value is not None}})
    found = {shard.name: shard for shard in find_shards(patterns)}
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    pairs, refused = (
        ShardRows(index / f"{name}.parquet", schema) for name, schema in (("pairs", PAIRS), ("quarantine", QUARANTINE))
    )
    old = summary["shards"]
    again = {name for name in old if is_chosen(refused.reasons(name), wanted)}
    require_shards(sorted(again), found)
    again |= {name for name in old if name in found and _size(found[name]) != old[name]["bytes"]}

    def shards() -> Iterator["ShardIndex"]:
        for name, facts in old.items():
            if name not in again:
                yield ShardIndex(pairs.of(name), refused.of(name), facts)
                continue
            made = index_shard(found[name], budgets)
            before.update(refused.reasons(name))
            after.update(reasons_of(made.quarantine))
            yield made

    def report() -> dict[str, Any]:
        return {"replayed": recovery(before, after), "shards_read_again": sorted(again)}

    remaining = write_index(out, shards(), len(old), budgets, report)
    click.echo(f"{len(again):,} of {len(old):,} shards read again")
    for line in recovery_lines(recovery(before, after)):
        click.echo(f"  {line}")
    if strict and remaining:
        raise SystemExit(1)


def _summary(index: Path) -> dict[str, Any]:
    """What an index says of itself, shards by name; unknown budgets of another release are left out."""
    from compalign_dagster.crawl.index import Budgets
    from compalign_dagster.errors import InputError

    path = index / "summary.json"
    try:
        summary = json.loads(path.read_text())
        budgets = {name: summary["budgets"][name] for name in vars(Budgets()) if name in summary["budgets"]}
        shards = {facts["shard"]: dict(facts) for facts in summary["shards"]}
        if any(type(facts["bytes"]) is not int for facts in shards.values()) or not all(
            type(budget) is int for budget in budgets.values()
        ):
            raise TypeError("numbers")
        return {"shards": shards, "budgets": budgets}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"index {index}",
            expected="a folder that `compalign index` wrote",
            found=f"no usable summary.json ({type(error).__name__})",
            remedy="Name the folder that was its --out.",
        ) from error


def _size(shard: "Shard") -> int:
    return shard.store.stat(shard.key).size
