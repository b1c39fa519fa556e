"""Change one thing at a time, ask for everything again, and count the work that is really done.

    python -m benchmarks.incremental

A sample crawl of many batches and a reward model of a few training steps. After each change every batch is
asked to be indexed and scored, then the ledger and the dataset: what is not done is left out by its content,
not by whoever asks. A pair counts as read when the reader of shards returns it, as scored when the model does.
Writes `result.json`, `result.md` and the table of `docs/incremental.md`.
"""

import json
import os
import platform
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

from compalign_dagster.settings import Settings, load

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "incremental.md"
MARKER = "<!-- below: written by python -m benchmarks.incremental -->"
PACKAGES = ("compalign-dagster", "dagster", "torch", "pyarrow")
BATCH_SHARDS = 2
_MODEL = {"pretrain_steps": 2, "train_steps": 2, "batch_images": 8}  # nobody looks at its rewards


@dataclass
class Counts:
    """What was done since the last change began; a shard that is both read and scored counts in both."""

    read: int = 0  # pairs
    shards_read: int = 0
    scored: int = 0  # pairs
    shards_scored: int = 0


class Crawl:
    """A home with a crawl, and counters round the two functions that do the work."""

    def __init__(self, home: Path, *, pairs: int, shard_pairs: int) -> None:
        from assets import raw_crawl
        from compalign_dagster.samples.crawl import write_sample_crawl
        from compalign_dagster.scoring import work
        from resources.accelerator import Accelerator
        from resources.storage import Storage

        self.home, self.counts, self.batches = home, Counts(), 0
        sizes = {"judged_images": 40, "evaluation_pairs": 4, "shard_pairs": shard_pairs}
        write_sample_crawl(home, seed=3, pairs=pairs, **sizes)
        write_sample_crawl(home / "more", seed=4, pairs=BATCH_SHARDS * shard_pairs, **sizes)
        self.settings: Settings = load(home=home, device="cpu", **_MODEL)
        self.storage = Storage.from_settings(self.settings)
        self.accelerator = Accelerator.from_settings(self.settings)
        self._undo = [(raw_crawl, "index_shard", raw_crawl.index_shard), (work, "publish_scores", work.publish_scores)]
        raw_crawl.index_shard = self._counted(raw_crawl.index_shard, self._has_read)
        work.publish_scores = self._counted(work.publish_scores, self._has_scored)

    def close(self) -> None:
        """Take the counters away."""
        for module, name, function in self._undo:
            setattr(module, name, function)

    def refresh(self) -> dict[str, Any]:
        """Seal what lies there, ask for everything, and return the counts, and the seconds of this."""
        from assets import filtered_dataset, raw_crawl, score_ledger, scored_shards
        from compalign_dagster import latest
        from compalign_dagster.crawl import batches

        started = time.monotonic()
        store = self.storage.store
        batches.seal(store, self.storage.landing, max_shards=BATCH_SHARDS)
        log = batches.read_log(store)
        for batch in log:
            raw_crawl.index_batch(self.storage, batch, raw_crawl.Budgets())
        for batch in log:
            scored_shards.score_batch(self.storage, self.accelerator, batch.key)
        score_ledger.publish_ledger(store)
        policy, _ = filtered_dataset._policy(self.storage, self.settings, filtered_dataset.SelectionConfig())
        ledger, _ = latest.numbered(store, score_ledger.KIND)
        dataset, reused = filtered_dataset.publish_dataset(self.storage, self.settings, policy, ledger)
        seconds = time.monotonic() - started
        self.batches = len(log)
        return {
            "batches": len(log),
            "pairs": dataset.facts["pairs"],
            "pairs_read": self.counts.read,
            "shards_read": self.counts.shards_read,
            "pairs_scored": self.counts.scored,
            "shards_scored": self.counts.shards_scored,
            "dataset_made": not reused,
            "seconds": round(seconds, 2),
        }

    def learn(self, seed: int) -> None:
        """Train a small model and promote it, past a gate that so little training cannot pass."""
        from assets import raw_crawl, reward_model
        from assets.coco_hf_annotations import publish_annotations
        from compalign_dagster import decisions
        from compalign_dagster.crawl import batches

        store = self.storage.store
        batches.seal(store, self.storage.landing, max_shards=BATCH_SHARDS)
        raw_crawl.index_batch(self.storage, batches.read_log(store)[0], raw_crawl.Budgets())
        publish_annotations(self.storage, self.settings)
        settings = self.settings.model_copy(update={"seed": seed})
        model, _ = reward_model.publish_reward_model(self.storage, self.accelerator, settings)
        now = decisions.current(store, "promoted_model")
        value = {"manifest": model.manifest_key, "model_version": model.facts["model_version"]}
        decisions.decide(store, "promoted_model", value, after=now.version if now else 0)

    def change_a_caption(self) -> None:
        """Deliver one shard again, with another caption of its first pair."""
        path = self._shards()[0]
        changed = BytesIO()
        with tarfile.open(path) as old, tarfile.open(fileobj=changed, mode="w") as new:
            members = [(member, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
            key = next(member.name for member, _ in members if member.name.endswith(".txt"))[: -len(".txt")]
            for member, data in members:
                if member.name == f"{key}.txt":
                    data = b"another caption altogether"
                if member.name == f"{key}.json":
                    data = json.dumps(json.loads(data) | {"caption": "another caption altogether"}).encode()
                member.size = len(data)
                new.addfile(member, BytesIO(data))
        self._deliver(path, changed.getvalue())

    def change_the_policy(self) -> None:
        """Adopt another keep fraction."""
        from compalign_dagster.selection.in_force import adopt
        from compalign_dagster.selection.policy import Policy

        adopt(self.storage.store, Policy(keep_fraction=Decimal("0.1")))

    def land_a_batch(self) -> None:
        """Shards that were not there, enough for one batch."""
        for number, path in enumerate(sorted((self.home / "more" / "landing").rglob("*.tar"))[:BATCH_SHARDS]):
            self._deliver(self.home / "landing" / "sample" / f"9{number:04d}.tar", path.read_bytes())

    def deliver_again(self) -> None:
        """The same bytes under the same name, at another time."""
        path = self._shards()[-1]
        self._deliver(path, path.read_bytes())

    def _shards(self) -> list[Path]:
        return sorted((self.home / "landing").rglob("*.tar"))

    def _deliver(self, path: Path, data: bytes) -> None:
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.replace(path)

    def _counted(self, function: Callable, count: Callable[[Any], None]) -> Callable:
        def counted(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            count(result)
            return result

        return counted

    def _has_read(self, index: Any) -> None:
        self.counts.read += index.pairs.num_rows
        self.counts.shards_read += 1

    def _has_scored(self, shard: Any) -> None:
        self.counts.scored += shard.facts["scored"] + shard.facts["quarantined"]
        self.counts.shards_scored += 1


def measure(home: Path, *, pairs: int = 1600, shard_pairs: int = 40) -> list[dict[str, Any]]:
    """One row per change, in this order, each after the one before it."""
    crawl = Crawl(home, pairs=pairs, shard_pairs=shard_pairs)
    changes: list[tuple[str, Callable[[], None]]] = [
        ("everything is new", lambda: crawl.learn(1)),
        ("nothing changed", lambda: None),
        ("the same bytes are delivered again", crawl.deliver_again),
        ("one caption changed in one shard", crawl.change_a_caption),
        ("the policy changed", crawl.change_the_policy),
        ("one batch more", crawl.land_a_batch),
        ("another model is promoted", lambda: crawl.learn(2)),
    ]
    try:
        rows = []
        for what, change in changes:
            crawl.counts, before = Counts(), crawl.batches
            change()
            rows.append({"change": what, "batches_before": before, **crawl.refresh()})
        return rows
    finally:
        crawl.close()


def table(rows: list[dict[str, Any]]) -> str:
    """The table of `docs/incremental.md`."""
    lines = [
        "| what changed | batches | pairs in the crawl | pairs read | pairs scored | shards read | shards scored "
        "| dataset | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for row in rows:
        counts = ("batches", "pairs", "pairs_read", "pairs_scored", "shards_read", "shards_scored")
        cells = " | ".join(f"{row[name]:,}" for name in counts)
        made = "new" if row["dataset_made"] else "the same"
        lines.append(f"| {row['change']} | {cells} | {made} | {row['seconds']:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder, "home"))
        shutil.rmtree(Path(folder, "home"))
    whole = rows[0]["seconds"]
    result = {
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "accelerator": None,
            "system": platform.system(),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "runs": rows,
        "ratios": {
            f"seconds_{row['change'].replace(' ', '_')}_vs_everything": {
                **dict.fromkeys(("median", "min", "max"), round(row["seconds"] / whole, 4)),
                "n": 1,
                "unit": "seconds ratio",
                "better": "lower",
            }
            for row in rows[1:]
        },
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "result.md").write_text(
        "One run of each on a small machine: the seconds are an order of magnitude, the counts are exact. The sample\n"
        "is rendered scenes and the model is tiny, so scoring weighs less than it does for real.\n\n" + table(rows)
    )
    prose, marker, _ = PAGE.read_text().partition(MARKER)
    PAGE.write_text(f"{prose}{marker}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
