"""From a list of URLs to a landed corpus: img2dataset fetches into a work folder, whole shards are landed.

Interrupted work goes on where it stopped: img2dataset passes over the shards it has finished, and landing
a shard again changes nothing. What does not belong here: which addresses are refused (`fetch.py`).
"""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from compalign_dagster.crawl.parquet_shards import Landed, land_file
from compalign_dagster.errors import ConservationError, InputError
from compalign_dagster.landing import fetch
from compalign_dagster.landing.urls import prepare
from compalign_dagster.store import Store
from compalign_dagster.versions import canonical_json, digest_file, digest_json

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")  # no credentials, no proxies


@dataclass(frozen=True)
class Fetching:
    """How a list is fetched. All but `threads` and `python` name the work."""

    python: Path  # of the environment that has img2dataset
    url_col: str = "url"
    caption_col: str | None = None
    shard_rows: int = 10_000
    member_bytes: int = 64 << 20
    seconds: float = 60  # for one answer; connecting and each read have 10
    threads: int = 64
    allow_private: bool = False

    def require(self) -> None:
        """Raise `InputError` when img2dataset is not there."""
        if not self.python.is_file():
            raise InputError(
                f"img2dataset's Python {self.python}",
                expected="an environment with img2dataset",
                found="none",
                remedy="Run `make img2dataset`, or name one with --img2dataset.",
            )


def land_list(path: Path, landing: Store, work: Path, how: Fetching) -> list[Landed]:
    """Fetch and land a list; what each shard gave, and last the rows that were refused before fetching.

    A list that was landed whole is not fetched again: what it gave then is returned.

    Raises:
        InputError: when the list or img2dataset cannot be used, when another list of this name was landed
            here, or when shards are unfinished (run again).
    """
    how.require()
    if not path.is_file():
        raise InputError(f"list {path}", expected="a file", found="none", remedy="Check the path.")
    stem, digest = re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem)[:80], digest_file(path)
    receipt = f"{stem}.urls_stats.json"
    if landing.exists(receipt):
        return _landed_before(landing, receipt, digest)
    named = {name: value for name, value in vars(how).items() if name not in ("threads", "python")}
    folder = (work / f"{stem}-{digest_json([digest, named])[:16]}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    turned_away = folder / f"{stem}.urls.refused.parquet"
    rows, fetchable, reasons = prepare(
        path,
        folder / "fetch.parquet",
        turned_away,
        url_col=how.url_col,
        caption_col=how.caption_col,
        allow_private=how.allow_private,
    )
    if fetchable:
        _fetch(folder, how)
    shards = [
        _land_shard(folder, at, f"{stem}-{at:05d}", min(how.shard_rows, fetchable - at * how.shard_rows), landing, how)
        for at in range(-(-fetchable // how.shard_rows))
    ]
    landed = [*shards, Landed(rows - fetchable, refused=reasons)]
    if rows != sum(item.written + item.refused.total() for item in landed):
        raise ConservationError(
            f"list {path}",
            expected=f"{rows} rows landed or refused",
            found=str(landed),
            remedy=f"Look into {folder}.",
        )
    landing.put_new(turned_away.name, turned_away)
    landing.put_new(receipt, canonical_json({"list_sha256": digest, "landed": [vars(item) for item in landed]}))
    shutil.rmtree(folder)
    return landed


def _landed_before(landing: Store, receipt: str, digest: str) -> list[Landed]:
    value = json.loads(landing.read(receipt))
    if value["list_sha256"] != digest:
        raise InputError(
            f"{receipt} in {landing.url}",
            expected="the receipt of this list",
            found="that of another list of the same name",
            remedy="Rename the list, or land it into another folder.",
        )
    found = [Landed(**{**item, "refused": Counter(item["refused"])}) for item in value["landed"]]
    for item in found:
        item.already_there = True
    return found


def _fetch(folder: Path, how: Fetching) -> None:
    order = {
        "allow_private": how.allow_private,
        "most_bytes": how.member_bytes,
        "most_seconds": how.seconds,
        "download": {
            "url_list": str(folder / "fetch.parquet"),
            "input_format": "parquet",
            "url_col": "url",
            "caption_col": "caption" if how.caption_col else None,
            "save_additional_columns": ["list_row"],
            "output_folder": str(folder / "out"),
            "output_format": "parquet",
            "disable_all_reencoding": True,
            "extract_exif": False,
            "number_sample_per_shard": how.shard_rows,
            "thread_count": how.threads,
            "incremental_mode": "incremental",
        },
    }
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {"HOME": str(folder)}
    with (folder / "img2dataset.log").open("ab") as output:
        command = [str(how.python.absolute()), "-I", fetch.__file__, json.dumps(order)]
        subprocess.run(command, stdout=output, stderr=output, env=environment, cwd=folder, check=False)  # noqa: S603


def _land_shard(folder: Path, at: int, name: str, rows: int, landing: Store, how: Fetching) -> Landed:
    if not (folder / "out" / f"{at:05d}_stats.json").exists():  # written last
        raise InputError(
            f"shard {at:05d} of the list",
            expected="to be fetched",
            found=f"it unfinished; img2dataset's words are in {folder / 'img2dataset.log'}",
            remedy="Run the same command again: finished shards are not fetched again.",
        )
    return land_file(
        folder / "out" / f"{at:05d}.parquet", landing, member_bytes=how.member_bytes, name=name, expected=rows
    )
