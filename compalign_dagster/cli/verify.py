"""`compalign verify`: is this version what it says, from the files alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from compalign_dagster.settings import load

if TYPE_CHECKING:
    from compalign_dagster.settings import Settings
    from compalign_dagster.store import Store

_FAULTY = 1
_SHARE = click.FloatRange(0, 1)


@click.command("verify")
@click.argument("version", default="current")
@click.option("--store", "store_url", metavar="URL", help="Where the artifacts lie.  [default: the profile's store]")
@click.option(
    "--landing", "landing_url", metavar="URL",
    help="Where the landed shards lie.  [default: the profile's; with --store not looked at]",
)  # fmt: skip
@click.option("--no-landing", is_flag=True, help="Take what the indexes say of landed shards as stated.")
@click.option(
    "--sample", type=_SHARE, default=1.0, show_default=True, help="Share of batches whose decisions are made again."
)
@click.option(
    "--recompute", type=_SHARE, default=0.0, help="Share of pairs that are read and scored again from the landed tars."
)
@click.option("--seed", default="", metavar="TEXT", help="Draw other samples than everybody can foresee.")
@click.option("--seal", type=click.Path(path_type=Path), help="A seal of this version, made by `compalign seal`.")
@click.option("--trusted", type=click.Path(path_type=Path), help="Keys that are trusted or revoked, for --seal.")
@click.option(
    "--export",
    "exported",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Instead: whether an exported folder is what its croissant.json says.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where --recompute scores.  [auto]"
)
def command(
    version: str,
    store_url: str | None,
    landing_url: str | None,
    no_landing: bool,
    sample: float,
    recompute: float,
    seed: str,
    seal: Path | None,
    trusted: Path | None,
    device: str,
    exported: Path | None,
) -> int:
    r"""Verify a VERSION of the dataset from the store alone, without Dagster and without a network.

    Every file behind it is compared with its manifest and every manifest with whoever used it, back to the landed
    bytes; lists, cuts and counts are made again from the scores; the facts that people decided are read in order.
    Whatever is wrong is named, file and field, and the exit code is 1. What a recorded takedown rewrote is listed
    as redacted. VERSION is `current`, a manifest key, or the beginning of a work key.

    \b
    compalign verify
    compalign verify 3f2a --sample 0.05                # decisions of one batch in twenty, with a bound
    compalign verify --recompute 0.01                  # a hundredth of the pairs, from the landed tars
    compalign verify --export dataset/                 # a folder that somebody was given: every key, file and digest
    compalign verify --seal release.dsse.json --trusted trusted.json
    """
    if exported is not None:
        return _exported(exported)

    from compalign_dagster.cli.terminal import aligned
    from compalign_dagster.compute import pick_device
    from compalign_dagster.lineage.keys import load_trusted, require_library
    from compalign_dagster.lineage.verify import Wanted, verify_version
    from compalign_dagster.store import open_store

    if (seal is None) != (trusted is None):
        raise click.UsageError("--seal and --trusted go together: a seal proves something to who trusts its key.")
    if recompute and no_landing:
        raise click.UsageError("--recompute reads the landed shards: leave --no-landing out.")
    if recompute and store_url and not landing_url:
        raise click.UsageError("--recompute reads the landed shards: say with --landing where those of --store lie.")
    settings = load()
    keys = {}
    if trusted is not None:
        require_library()
        keys = load_trusted(trusted)
    if recompute:
        pick_device(device)
    store = open_store(store_url or settings.store)
    key = manifest_key(store, version)
    landing, labels = None, None
    if not no_landing and (landing_url or not store_url):  # another store was not made from this profile's landing
        landing, labels = outside(settings, landing_url)
    wanted = Wanted(
        landing=landing,
        labels=None if store_url else labels,
        sample=sample,
        recompute=recompute,
        seed=seed,
        device=device,
        seal=seal,
        trusted=keys,
    )
    report = verify_version(store, key, wanted)
    for line in report.lines():
        click.echo(aligned(line))
    return _FAULTY if report.faults else 0


def _exported(folder: Path) -> int:
    from compalign_dagster.cli.terminal import aligned
    from compalign_dagster.selection.croissant_check import check

    faults = check(folder)
    for fault in faults:
        click.echo(aligned(fault))
    click.echo(f"{len(faults)} faults" if faults else "no fault found")
    return _FAULTY if faults else 0


def manifest_key(store: "Store", name: str) -> str:
    """The manifest key that a version's name stands for; `InputError` where the store's facts cannot tell."""
    from compalign_dagster.errors import InputError
    from compalign_dagster.selection.versions import find

    if name.endswith("/manifest.json"):
        return name
    try:
        return find(store, name).manifest_key
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # facts or manifests that were altered
        raise InputError(
            f"dataset version {name!r} in {store.url}",
            expected="facts and manifests that can be read",
            found=f"{type(error).__name__}: {error}",
            remedy="Name the version by its manifest key, filtered_dataset/<work key>/manifest.json.",
        ) from error


def outside(settings: "Settings", landing_url: str | None = None) -> "tuple[Store, Store]":
    """Where landed shards and label exports lie. `InputError` where no shard lies: nothing would be compared."""
    from compalign_dagster.errors import InputError
    from compalign_dagster.store import open_store

    url = landing_url or settings.landing
    landing = open_store(url)
    if next(iter(landing.list()), None) is None:
        raise InputError(
            f"landing {url}",
            expected="landed shards",
            found="nothing",
            remedy="Check the address, or take landed shards as stated: --no-landing.",
        )
    return landing, open_store(settings.labels)
