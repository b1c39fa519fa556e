"""Index, score, ledger, filter and `current` for one batch of two tiny shards, with a model that never trained.

Made to be run hundreds of times: no orchestrator, no plots (drawing them touches no storage). All paths are
derived from `home`: `home/landing`, and `home/store` as it is before the job.
"""

import importlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from compalign_dagster import artifacts, decisions, latest
from compalign_dagster.settings import load
from compalign_dagster.store import LocalStore, Store
from tests.support.tiny_reward import crawl_shard, tiny_config, tiny_data

BATCH = "batch-00001"
SHARDS, PAIRS = 2, 4
_CHAIN = (("raw_crawl", BATCH), ("scored_shards", BATCH), ("score_ledger", None), ("filtered_dataset", None))
_HEAVY = ("duckdb", "matplotlib.figure", "polars", "transformers", "compalign_dagster.pages.crawl",
          "compalign_dagster.pages.filtered", "compalign_dagster.pages.images", "compalign_dagster.reward.blip",
          "compalign_dagster.reward.folder", "compalign_dagster.lineage.chain",
          "compalign_dagster.scoring.where")  # fmt: skip


def prepare(home: Path) -> None:
    """Landed shards, a promoted model and a sealed batch."""
    from compalign_dagster.crawl import batches
    from compalign_dagster.reward.folder import model_version, save_model
    from compalign_dagster.reward.model import backbone

    for at in range(SHARDS):
        crawl_shard(home / "landing", PAIRS, f"web/{at:05d}.tar")
    model = backbone("blip-tiny").build(tiny_config(), tiny_data(home / "judged", judged=4))
    folder = save_model(model, home / "model")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    facts = {"model_version": model_version(folder)}
    store = LocalStore(home / "store")
    made = artifacts.publish(store, "reward_model", "m" * 32, files, code_version=1, inputs=[], config={}, facts=facts)
    decisions.decide(store, "promoted_model", {"manifest": made.manifest_key, **facts}, after=0)
    batches.seal(store, LocalStore(home / "landing"), max_shards=9)


def preload() -> None:
    """Import all that a run needs without starting a thread; draw no plots; log each shard that is worked on."""
    import torch

    from assets import raw_crawl
    from compalign_dagster.pages import plots
    from compalign_dagster.scoring import work

    torch.set_num_threads(1)
    for name in _HEAVY:
        importlib.import_module(name)
    plots._save = lambda draw, width, height, out, kind, **_: out.write("<svg />" if kind == "svg" else b"png")
    raw_crawl.index_shard = _logged(raw_crawl.index_shard)
    work.publish_scores = _logged(work.publish_scores)


def run(home: Path, folder: Path, wrap: Callable[[Store], Store] = lambda store: store) -> None:
    """The job over the store in `folder`; it and the landing folder are used through `wrap`."""
    from assets import filtered_dataset, raw_crawl, score_ledger, scored_shards
    from compalign_dagster.crawl import batches
    from compalign_dagster.crawl.index import Budgets
    from compalign_dagster.selection import current
    from compalign_dagster.selection.in_force import in_force
    from compalign_dagster.selection.policy import Policy
    from resources.accelerator import Accelerator

    global _log
    _log = _work_of(folder)
    settings = load(home=home, device="cpu")
    store, landing = wrap(LocalStore(folder)), wrap(LocalStore(home / "landing"))
    storage: Any = SimpleNamespace(store=store, landing=landing, store_url=store.url, landing_url=landing.url)
    raw_crawl.index_batch(storage, batches.require(store, BATCH), Budgets())
    scored_shards.score_batch(storage, Accelerator.from_settings(settings), BATCH)
    score_ledger.publish_ledger(store)
    policy = in_force(store, Policy(keep_fraction=settings.keep_fraction))
    ledger, number = latest.numbered(store, "score_ledger")
    with patch.object(filtered_dataset, "_views", lambda *_: {"page.html": b"a page"}):  # drawing is no storage
        dataset, _ = filtered_dataset.publish_dataset(storage, settings, policy, ledger)
    current.move(dataset, policy=policy.version, ledger=number)


def outcome(folder: Path) -> dict[str, Any]:
    """All that two runs must agree on, by name: digests, counts, every decision, every key."""
    store = LocalStore(folder)
    found: dict[str, Any] = {}
    for kind, partition in _CHAIN:
        artifact = latest.require(store, kind, partition)
        timed = ("seconds", "speed", "lists")  # a list that another run made is used again
        found[kind] = [artifact.data_version, {k: v for k, v in artifact.facts.items() if k not in timed}]
    keys = [item.key for item in store.list()]
    for key in keys:
        if key.startswith("decisions/"):
            name, _, number = key.removeprefix("decisions/").rpartition("/")
            (decision,) = [fact for fact in decisions.history(store, name) if number == f"{fact.version:08d}.json"]
            found[key] = {**decision.value, "manifest_sha256": None}  # a manifest says when it was made
    return {**found, "keys": [key for key in keys if not key.endswith("/audit.html")]}  # which says when, and where


def unverified(folder: Path) -> list[str]:
    """What does not verify behind `current` and behind the newest artifact of each kind."""
    from compalign_dagster.lineage.chain import verify
    from compalign_dagster.selection import current

    store = LocalStore(folder)
    dataset = current.read(store)
    assert dataset is not None
    made = [dataset, *(latest.require(store, kind, partition) for kind, partition in _CHAIN)]
    for artifact in made:
        artifact.verify()
    return verify(dataset)


def redone(folder: Path) -> int:
    """How many shards were indexed or scored more often than once, in all runs over this store together."""
    log = _work_of(folder)
    return max(0, len(log.read_text().splitlines()) - 2 * SHARDS) if log.exists() else 0


def remove(folder: Path) -> None:
    """Give back the space of a store and its log."""
    shutil.rmtree(folder)
    _work_of(folder).unlink(missing_ok=True)


_log = Path()


def _work_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.work")


def _logged(work: Callable) -> Callable:
    def logged(*arguments: Any, **options: Any) -> Any:
        with _log.open("a") as log:
            log.write(f"{work.__name__}\n")
        return work(*arguments, **options)

    return logged


class _ManifestFirst:
    """A store that holds files back until the manifest is there."""

    def __init__(self, inner: Store) -> None:
        self.inner, self.url, self.waiting = inner, inner.url, []

    def put_new(self, key: str, source: bytes | Path) -> bool:
        if not key.endswith("manifest.json"):
            self.waiting.append((key, source))
            return True
        new = self.inner.put_new(key, source)
        for waiting in self.waiting:
            self.inner.put_new(*waiting)
        return new

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _manifest_before_files() -> None:
    publish = artifacts.publish

    def published(store: Store, *rest: Any, **named: Any) -> artifacts.Artifact:
        return replace(publish(_ManifestFirst(store), *rest, **named), store=store)

    artifacts.publish = published


def _a_decision_is_repeated_without_a_look() -> None:
    move = decisions.move

    def moved(store: Store, name: str, choose: Callable) -> decisions.Decision | None:
        return move(store, name, lambda now: choose(None))

    decisions.move = moved


def _published_shards_are_not_found() -> None:
    find = artifacts.find

    def found(store: Store, kind: str, *rest: Any) -> artifacts.Artifact | None:
        return None if kind.endswith("_shards") else find(store, kind, *rest)

    artifacts.find = found


BUGS = {
    plant.__name__.strip("_"): plant
    for plant in (_manifest_before_files, _a_decision_is_repeated_without_a_look, _published_shards_are_not_found)
}
"""Faults to plant in the code under test, by name; each must be caught."""
