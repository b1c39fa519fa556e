"""Kill -9 at many random moments of index, score, ledger and filter, and compare what is there afterwards.

    python -m tests.support.killing FOLDER --points 50 --seed 1

A parent imports everything once and computes nothing, so that a fork is a fresh and idle process. For each
point a child is killed at a moment of its own, another child runs to the end, and the store is compared
with that of an undisturbed run. Prints one JSON object: what was killed when, and every finding.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compalign_dagster import artifacts
from compalign_dagster.settings import Settings, load
from compalign_dagster.store import LocalStore

_NEEDED = (
    "duckdb",
    "assets.filtered_dataset",
    "assets.raw_crawl",
    "assets.score_ledger",
    "assets.scored_shards",
    "compalign_dagster.pages.crawl",
    "compalign_dagster.pages.filtered",
    "compalign_dagster.pages.images",
    "compalign_dagster.reward.blip",
    "compalign_dagster.reward.training",
    "compalign_dagster.scoring.engine",
    "compalign_dagster.scoring.where",
)
BATCH = "batch-00001"
SHARDS = 4
_WORK_LOG = "work.log"  # one line for every shard that is read and every one that is scored; outlives its process
_SLOW_WRITE_SECONDS = 0.02  # of the planted bug: what a large file takes on a slow disk


def preload() -> None:
    """Import what the work needs, so that a child starts with it; threads would not survive a fork."""
    import importlib
    import io

    import matplotlib.pyplot as plt
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    for name in _NEEDED:
        importlib.import_module(name)
    Image.init()
    plt.figure().savefig(io.BytesIO())  # finds its fonts once
    plt.close("all")
    os.fsync = lambda _: None  # a killed process loses nothing that it wrote; a lost machine does


def settings_of(home: Path) -> Settings:
    """The settings of one home."""
    return load(home=home, device="cpu")


def prepare(home: Path) -> None:
    """A small crawl of a few shards, sealed as one batch, and a promoted model of two training steps."""
    from compalign_dagster import decisions
    from compalign_dagster.crawl.batches import seal
    from compalign_dagster.reward.folder import model_version, save_model
    from compalign_dagster.reward.training import train
    from tests.support.tiny_reward import crawl_shard, tiny_config, tiny_data

    for number in range(SHARDS):
        crawl_shard(home / "landing", count=24 + number, name=f"web/{number:05d}.tar")
    store = LocalStore(home / "store")
    seal(store, LocalStore(home / "landing"), max_shards=100)
    trained = train(tiny_config(), tiny_data(home / "training"), device="cpu")
    save_model(trained.model, home / "model", metrics=trained.metrics, record=trained.record)
    files: dict[str, bytes | Path] = {
        path.relative_to(home / "model").as_posix(): path for path in (home / "model").rglob("*") if path.is_file()
    }
    version = model_version(home / "model")
    model = artifacts.publish(
        store, "reward_model", "0" * 32, files, code_version=1, inputs=[], config={}, facts={"model_version": version}
    )
    decisions.decide(store, "promoted_model", {"manifest": model.manifest_key, "model_version": version}, after=0)


def work(home: Path) -> None:
    """Index, score, fold and filter, as the assets do; a shard leaves a line when it is read and when it is scored."""
    from assets import filtered_dataset, raw_crawl, score_ledger, scored_shards
    from compalign_dagster import latest
    from compalign_dagster.crawl import batches
    from compalign_dagster.scoring import work as scoring
    from compalign_dagster.selection import current
    from resources.accelerator import Accelerator
    from resources.storage import Storage

    settings = settings_of(home)
    storage, accelerator = Storage.from_settings(settings), Accelerator.from_settings(settings)
    raw_crawl.index_shard = _counted(home, "index", raw_crawl.index_shard, lambda shard: shard.name)
    scoring.publish_scores = _counted(home, "score", scoring.publish_scores, lambda work: work.shard)

    raw_crawl.index_batch(storage, batches.require(storage.store, BATCH), raw_crawl.Budgets())
    scored_shards.score_batch(storage, accelerator, BATCH)
    score_ledger.publish_ledger(storage.store)
    policy, _ = filtered_dataset._policy(storage, settings, filtered_dataset.SelectionConfig())
    ledger, number = latest.numbered(storage.store, score_ledger.KIND)
    dataset, _ = filtered_dataset.publish_dataset(storage, settings, policy, ledger)
    current.move(dataset, policy=policy.version, ledger=number)


def _counted(home: Path, what: str, function: Callable, name: Callable[[Any], str]) -> Callable:
    def counted(*arguments: Any, **options: Any) -> Any:
        with (home / _WORK_LOG).open("a") as log:
            log.write(f"{what} {name(arguments[0])}\n")
        return function(*arguments, **options)

    return counted


def in_place(self: LocalStore, key: str, source: bytes | Path) -> bool:
    """The planted bug: an object is written where it will be read, bit by bit."""
    target = self.path(key)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with target.open("xb", buffering=0) as out:
            out.write(data[: len(data) // 2])
            time.sleep(_SLOW_WRITE_SECONDS)
            out.write(data[len(data) // 2 :])
    except FileExistsError:
        return False
    return True


def plant(bug: str) -> None:
    """Break this process."""
    if bug == "writes-in-place":
        LocalStore.put_new = in_place  # type: ignore[method-assign]
    elif bug == "finds-nothing":
        artifacts.find = lambda *_: None


def child(function: Callable[[Path], None], home: Path, bug: str) -> int:
    """Fork; the child runs `function` with its output in a file and leaves with 0 or 1."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(home.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        plant(bug)
        function(home)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def finish(process: int) -> int:
    """Wait for a child; its exit status, or minus the signal that ended it."""
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def contents(home: Path) -> dict[str, Any]:
    """What a store says: files by digest, manifests by what they promise, decisions by their value.

    Times of day, durations and the store's own place differ between two runs of the same work; nothing else may. The
    audit page tells when its policy was adopted and where it lies, and a manifest's digest covers its time.
    """
    store, found = LocalStore(home / "store"), {}
    for item in store.list():
        data = store.read(item.key)
        if item.key.endswith("/manifest.json"):
            manifest = json.loads(data)
            found[item.key] = [manifest["data_version"], sorted(manifest["files"])]
        elif item.key.endswith("/audit.html"):
            continue
        elif item.key.startswith("decisions/"):
            body = json.loads(data)
            found[item.key] = [body["version"], {**body["value"], "manifest_sha256": None}]
        else:
            found[item.key] = hashlib.sha256(data).hexdigest()
    return found


def problems(home: Path, wanted: dict[str, Any], undisturbed: Counter[str]) -> list[str]:
    """Every way in which a store that was killed and finished differs from an undisturbed one."""
    try:
        found = contents(home)
        store = LocalStore(home / "store")
        for key in found:
            if key.endswith("/manifest.json"):
                artifact = artifacts.load(store, key)
                assert artifact is not None
                artifact.verify()
    except Exception as error:
        return [f"unreadable: {type(error).__name__}: {error}"[:300]]
    result = [f"lost: {key}" for key in sorted(wanted.keys() - found.keys())]
    result += [f"left over: {key}" for key in sorted(found.keys() - wanted.keys())]
    result += [f"other bytes: {key}" for key in sorted(found.keys() & wanted.keys()) if found[key] != wanted[key]]
    temporaries = [path for path in (home / "store").rglob(".*") if path.is_file()]
    if len(temporaries) > 1:
        result.append(f"{len(temporaries)} temporary files of one kill")
    again = worked(home) - undisturbed
    if again.total() > 1:
        result.append(f"done again: {dict(again)}")
    return result


def worked(home: Path) -> Counter[str]:
    """How often each shard was read, and how often it was scored."""
    return Counter((home / _WORK_LOG).read_text().splitlines()) if (home / _WORK_LOG).exists() else Counter()


def main() -> None:
    """Parse, kill, compare, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bug", choices=["", "writes-in-place", "finds-nothing"], default="")
    parser.add_argument("--first", action="store_true", help="stop at the first finding")
    given = parser.parse_args()
    preload()
    print(json.dumps(campaign(given.folder, given.points, given.seed, given.bug, given.first)))


def campaign(folder: Path, points: int, seed: int, bug: str, first: bool) -> dict[str, Any]:
    """Kill at `points` moments spread over the time that undisturbed work takes."""
    template = folder / "template"
    template.mkdir(parents=True)
    assert finish(child(prepare, template, "")) == 0, template.with_suffix(".log").read_text()
    seconds = []
    for name in ("warm", "whole"):
        home = shutil.copytree(template, folder / name)
        started = time.monotonic()
        assert finish(child(work, home, bug)) == 0, home.with_suffix(".log").read_text()
        seconds.append(time.monotonic() - started)
    wanted, undisturbed = contents(folder / "whole"), worked(folder / "whole")
    chooser, killed, findings = random.Random(seed), Counter[str](), []
    whole, early = seconds[-1], 0
    for point in range(points):
        moment = (point + chooser.random()) / points
        home = folder / f"point-{point}"
        while (stage := _killed(template, home, bug, moment * whole)) is None:
            whole, early = whole * 0.9, early + 1  # it had ended: the machine is less busy than it was
            shutil.rmtree(home)
        killed[stage] += 1
        status = finish(child(work, home, bug))
        found = problems(home, wanted, undisturbed)
        if status:
            found.append("cannot be finished: " + home.with_suffix(".log").read_text()[-300:])
        findings += [{"point": point, "moment": round(moment, 3), "finding": text} for text in found]
        shutil.rmtree(home)
        if findings and first:
            break
    return {
        "seed": seed,
        "seconds_of_a_run": round(seconds[-1], 2),
        "kills": killed.total(),
        "killed": dict(killed),
        "ended_before_the_kill": early,
        "objects": len(wanted),
        "findings": findings,
    }


def _killed(template: Path, home: Path, bug: str, delay: float) -> str | None:
    """Start the work in a new home and kill it after `delay` seconds: how far it was, None if it had ended."""
    shutil.copytree(template, home)
    process = child(work, home, bug)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    return _stage(home) if finish(process) < 0 else None


def _stage(home: Path) -> str:
    """How far a killed run had come."""
    done = "start"
    for stage in ("raw_crawl_shards", "raw_crawl", "scored_shards_shards", "scored_shards", "score_ledger", "current"):
        if (home / "store" / "decisions" / "latest" / stage).exists() or (home / "store" / stage).exists():
            done = f"after the first of {stage}"
    return "at the end" if (home / "store" / "decisions" / "current").exists() else done


if __name__ == "__main__":
    sys.exit(main())
