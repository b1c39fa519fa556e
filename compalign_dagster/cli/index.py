"""`compalign index`: the pairs of shards, and what was refused and why."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compalign_dagster.cli import options

if TYPE_CHECKING:
    from compalign_dagster.crawl.index import Budgets, ShardIndex


@click.command("index")
@options.shards
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@options.budgets("64 MiB", "89478485", "10000", "1000000", "16 GiB")
@options.strict
def command(patterns: tuple[str, ...], out: Path, strict: bool, **limits: int | None) -> None:
    r"""List the pairs of webdataset shards, and everything that was refused with its reason.

    Images stay in their tar: a pair is the place of its image, and a caption. A sample's captions are
    the `captions` list of its .json, else its .txt, else `caption` in its .json.

    \b
    OUT/pairs.parquet       one row a pair: pair_id, shard, key, caption_index, caption,
                            image_offset, image_length, width, height, image_sha256, ...
    OUT/quarantine.parquet  one row for each thing refused: shard, key, offset, reason, detail, ...
    OUT/summary.json        members = used + quarantined + ignored; captions = pairs + quarantined;
                            counts per reason; every shard's status

    \b
    compalign index --shards crawl/ --out index/
    compalign index --shards 'crawl/**/*.tar' --shards s3://bucket/more --out index/ --strict
    """
    from compalign_dagster.cli.progress import show_progress
    from compalign_dagster.crawl.index import Budgets, index_shard
    from compalign_dagster.crawl.shards import find_shards

    show_progress()
    budgets = Budgets(**{name: value for name, value in limits.items() if value is not None})
    found = find_shards(patterns)
    reasons = write_index(out, (index_shard(shard, budgets) for shard in found), len(found), budgets)
    if strict and reasons:
        raise SystemExit(1)


def write_index(
    out: Path,
    indexes: Iterable["ShardIndex"],
    total: int,
    budgets: "Budgets",
    more: Callable[[], dict[str, Any]] = dict,
) -> Counter[str]:
    """Write the three files of an index, shard by shard, and say what is in them; the quarantine by reason.

    `more` gives what else belongs into the summary once all shards are written. Raises `InputError` when no
    shard could be read.
    """
    from compalign_dagster.cli.files import table_file, write_json
    from compalign_dagster.crawl.index import CODE_VERSION, reasons_of
    from compalign_dagster.crawl.tables import PAIRS, QUARANTINE

    shards: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    report = options.progress()
    with (
        table_file(out / "pairs.parquet", PAIRS) as pairs,
        table_file(out / "quarantine.parquet", QUARANTINE) as refused,
    ):
        for done, index in enumerate(indexes, start=1):
            pairs.write_table(index.pairs)
            refused.write_table(index.quarantine)
            shards.append(index.summary)
            reasons.update(reasons_of(index.quarantine))
            report(done, total, "shards")
    summary = summarize(shards, reasons)
    write_json(out / "summary.json", {**summary, "budgets": vars(budgets), "code_version": CODE_VERSION, **more()})
    members, captions = summary["members"], summary["captions"]
    click.echo(f"{captions['pairs']:,} pairs in {len(shards):,} shards: {out / 'pairs.parquet'}")
    quarantined = members["quarantined"] + captions["quarantined"]
    click.echo(f"{quarantined:,} members and captions quarantined: {out / 'quarantine.parquet'}")
    refuse_if_unreadable(shards, reasons)
    return reasons


def summarize(shards: list[dict[str, Any]], reasons: Counter[str]) -> dict[str, Any]:
    """The two conservation identities, counts per reason, and the shards; JSON values."""

    def total(name: str) -> int:
        return sum(shard[name] for shard in shards)

    members = {
        "found": total("members"),
        "used": total("used"),
        "quarantined": total("quarantined_members"),
        "ignored": total("ignored"),
    }
    captions = {
        "found": total("captions"),
        "pairs": total("pairs"),
        "quarantined": total("quarantined_captions"),
    }
    return {
        "members": {**members, "conserved": members["found"] == sum(members.values()) - members["found"]},
        "captions": {
            **captions,
            "conserved": captions["found"] == sum(captions.values()) - captions["found"],
        },
        "disagreements": total("disagreements"),
        "quarantined_by_reason": dict(sorted(reasons.items())),
        "shards_by_status": dict(sorted(Counter(shard["status"] for shard in shards).items())),
        "shards": shards,
    }


def refuse_if_unreadable(shards: list[dict[str, Any]], reasons: Counter[str]) -> None:
    """Raise `InputError` when no shard at all could be read."""
    from compalign_dagster.errors import InputError

    if all(shard["status"] == "unreadable" for shard in shards):
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise InputError(
            f"shard {shards[0]['shard']}" + (f" and {len(shards) - 1} more" if len(shards) > 1 else ""),
            expected="at least one readable tar",
            found=why,
            remedy="Deliver the shards again.",
        )
