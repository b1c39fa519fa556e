"""A whole small store in a second, without a model and without a run of Dagster: landed tars to `current`.

    small = small_store(tmp_path)               # two batches of two shards, 60 images a shard
    version = small.filter(keep_fraction="0.3") # publishes the version of this policy and moves `current` to it
    small.land_more(); small.remove("web/00000.tar"); small.filter(...)

All of it is published by the code that the assets run, so its manifests are the true ones; only the model's weights
and the figures are made up. Rewards hold ties, 0.0 and -0.0; human_fit and the criteria follow the reward, and
label_free is null. In each shard, of `pairs` images:

- the first image lies a second time under another key, with a caption of its own (duplicate groups);
- sample `again` has the same image and caption, so the same pair_id, in every shard;
- every fifth image has two captions; one caption is German and one French; one sample's caption is blank and
  quarantined by the index; one pair of every second shard has a reward that is not finite and is quarantined by
  scoring; every seventh sample has no URL, the others are of four hosts of `HOSTS`.

Shards alternate between the corpora of `CORPORA`.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl import batches
from compalign_dagster.crawl.batches import Batch
from compalign_dagster.crawl.live import earliest_indexed, indexed_shards
from compalign_dagster.reward import promoted
from compalign_dagster.reward.manifest import MANIFEST, Manifest, list_files
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.scoring.results import ShardScores, tables
from compalign_dagster.scoring.tables import CODE_VERSION, FIGURES, LEDGER
from compalign_dagster.scoring.work import Places, ShardWork, publish_scores
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.version import Version
from compalign_dagster.settings import Settings, load
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import digest_json
from tests.support.shard_builder import Entry, picture, sample, tar

if TYPE_CHECKING:
    from resources.storage import Storage

CORPORA = ("web", "shop")
HOSTS = ("pictures.example.org", "cdn.example.net", "shop.example.com", "news.example.edu")
LABELERS = ("ada", "grace")
_OTHERS = {3: "Ein roter Ball liegt auf der grünen Wiese hinter dem Haus.", 4: "Le chat noir dort sur la chaise."}
_BYTES = {"precision": "fp32", "image_pixels": 64_000_000}
_PAGE = {"page.html": b"<p>made up"}
_ESTIMATE = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 100}


@dataclass
class SmallStore:
    """Folders below `home`, and what can happen to them."""

    home: Path
    shards: int  # of each batch
    pairs: int  # images of each shard
    seed: int

    @property
    def settings(self) -> Settings:
        return load(home=self.home, device="cpu")

    @property
    def storage(self) -> "Storage":
        """The resource that the assets' functions take."""
        from resources.storage import Storage

        return Storage.from_settings(self.settings)

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.home / "store")

    @property
    def landing(self) -> LocalStore:
        return LocalStore(self.home / "landing")

    @property
    def batches(self) -> list[str]:
        """Keys of the log's batches, oldest first."""
        return [batch.key for batch in batches.read_log(self.store)]

    @property
    def model(self) -> Artifact:
        """The promoted model."""
        return promoted.promoted(self.store)

    @property
    def ledger(self) -> Artifact:
        """The newest ledger."""
        return latest.require(self.store, "score_ledger")

    def land(self) -> list[str]:
        """Write the next `shards` shards and return their names; nothing is sealed."""
        sealed = (item.shard for batch in batches.read_log(self.store) for item in batch.added)
        first = max((_number(shard) + 1 for shard in sealed), default=0)
        names = [f"{CORPORA[at % 2]}/{at:05d}.tar" for at in range(first, first + self.shards)]
        for at, name in enumerate(names, start=first):
            _place(self.home / "landing" / name, tar(_samples(at, self.pairs)))
        return names

    def land_more(self) -> Batch:
        """Another batch: landed, sealed, indexed, scored, and in the ledger."""
        self.land()
        return self.settle()

    def remove(self, shard: str) -> Batch:
        """Take a landed shard away, as a batch that removes it."""
        (self.home / "landing" / shard).unlink()
        return self.settle()

    def settle(self) -> Batch:
        """Seal what lies in the landing folder, index and score it, fold the ledger."""
        batch = self.index()
        self.score(batch.key)
        return batch

    def index(self) -> Batch:
        """Seal what lies in the landing folder as one batch and index it."""
        from assets.raw_crawl import Budgets, index_batch

        (batch,) = batches.seal(self.store, self.landing, max_shards=10_000)
        index_batch(self.storage, batch, Budgets())
        return batch

    def score(self, batch: str) -> Artifact:
        """Publish made-up figures of a batch by the promoted model, then the ledger; the batch's scores."""
        from assets.score_ledger import publish_ledger

        scored = _publish_scores(self, batch)
        publish_ledger(self.store)
        return scored

    def promote(self, name: str) -> Artifact:
        """Another model with this name in its weights, promoted; batches must be scored again."""
        return _promote(self, name)

    def filter(self, policy: Policy | None = None, *, move: bool = True, **choice: Any) -> Version:
        """The version that a policy makes of the newest ledger; without one, that of `Policy(**choice)`.

        The default keeps 0.3. The policy is adopted and the version becomes `current`, unless `move` is False.
        """
        chosen = policy or Policy(**(choice or {"keep_fraction": "0.3"}))
        return _publish_version(self, chosen, move=move)


def small_store(folder: Path, *, batches: int = 2, shards: int = 2, pairs: int = 60, seed: int = 1) -> SmallStore:
    """`batches` scored batches of `shards` shards of `pairs` images below `folder`; nothing is filtered yet."""
    small = SmallStore(folder, shards, pairs, seed)
    (folder / "landing").mkdir(parents=True)
    small.land()
    first = small.index()
    _promote(small, "first")
    small.score(first.key)
    for _ in range(batches - 1):
        small.land_more()
    return small


def figures(pairs: int, seed: Sequence[int]) -> np.ndarray:
    """FIGURES of so many pairs, [pairs, F] float32: rewards in steps of 0.25, so that there are ties."""
    generator = np.random.default_rng(list(seed))
    reward = np.round(generator.normal(size=pairs) * 6) / 4
    reward[:2] = (0.0, -0.0)[: pairs or None]
    found = {name: reward + generator.normal(size=pairs) / 4 for name in FIGURES}
    found |= {"reward": reward, "human_fit": 1 / (1 + np.exp(-reward)), "label_free": np.full(pairs, np.nan)}
    found["reward_std"] = np.abs(found["reward_std"])
    return np.stack([found[name] for name in FIGURES], axis=1).astype(np.float32)


def _number(shard: str) -> int:
    return int(Path(shard).stem)


def _place(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _samples(number: int, images: int) -> list[Entry]:
    """The members of one shard."""
    keys = count()

    def copy_of(image: int, captions: list[str], key: str | None = None) -> list[Entry]:
        at = next(keys)
        key = key or f"{number:05d}{at:04d}"
        fields: dict[str, Any] = {"captions": captions, "sha256": "not read"}
        if at % 7:
            fields["url"] = f"https://{HOSTS[(at * at + number) % len(HOSTS)]}/{key}.jpg"
        return [(f"{key}.jpg", picture(image)), (f"{key}.json", json.dumps(fields).encode())]

    made = []
    for at in range(images):
        caption = _OTHERS.get(
            at, f"a picture of thing {at} of shelf {number}, seen from the {['left', 'right'][at % 2]}"
        )
        made += copy_of(number * images + at + 1, [caption] if at % 5 else [caption, f"thing {at}, again"])
    made += copy_of(number * images + 1, ["the same thing under another key"])
    made += copy_of(0, ["what everybody copies"], key="again")
    return made + copy_of(number * images + 2, [" "])


def _publish_scores(small: SmallStore, batch: str) -> Artifact:
    """The scores of a batch's live shards, shard by shard and together."""
    store, model = small.store, small.model
    places, made = Places(store, small.landing), []
    for item in indexed_shards(store, batch):
        work = ShardWork.of(item, places, model, _BYTES)
        artifact = publish_scores(work, places, _scores(small, work), {})
        row = {
            **{name: getattr(item, name) for name in ("shard", "batch", "pairs_key", "index_version", "pairs")},
            **{name: artifact.facts[name] for name in ("scored", "quarantined")},
            "model_version": model.facts["model_version"],
            "scores_key": artifact.file_key("scores.parquet"),
            "work_key": work.key,
            "data_version": artifact.data_version,
            "rejected": 0,
        }
        made.append((row, artifact))
    rows = [row for row, _ in made]
    raw = latest.require(store, "raw_crawl", batch)
    totals = {name: sum(row[name] for row in rows) for name in ("pairs", "scored", "quarantined")}
    with tempfile.TemporaryDirectory() as folder:
        scored = artifacts.publish(
            store,
            "scored_shards",
            digest_json([batch, [row["data_version"] for row in rows], model.facts["model_version"]])[:32],
            {"shards.parquet": parquet.write(parquet.from_rows(rows, LEDGER), Path(folder, "shards.parquet"))},
            code_version=CODE_VERSION,
            inputs=[raw.as_input(), model.as_input(), *(artifact.as_input() for _, artifact in made)],
            config=_BYTES,
            facts={"model_version": model.facts["model_version"], "shards": len(rows), **totals, "problems": []},
            partition=batch,
        )
    latest.point(scored)
    return scored


def _scores(small: SmallStore, work: ShardWork) -> ShardScores:
    pairs = parquet.read(small.store.fetch(work.pairs_key))
    number, model = _number(work.shard), small.model.facts["model_version"]
    found = figures(len(pairs), [small.seed, number, int(model[:8], 16)])
    if number % 2:
        found[1, 0] = np.nan
    scores, quarantine = tables(pairs, found, len(pairs), {}, model)
    stages = {"read": 0.25, "decode": 0.25, "forward": 0.25, "write": 0.25}
    return ShardScores(scores, quarantine, 1.0, 0, stages, 8, 0, "cpu")


def _judged(home: Path) -> None:
    """Label exports: six images of three captions each, ranked by both labelers."""
    members, lines = [], []
    for at in range(6):
        members += sample(f"{at:05d}", f"judged {at}", seed=100_000 + at)
        captions = [{"id": f"c{place}", "text": f"judged {at}, {place}", "source": "human"} for place in range(3)]
        judgements = [
            {"labeler": labeler, "ranking": [["c0"], ["c1", "c2"]], "guideline": "v1", "seconds": 12.5}
            for labeler in LABELERS
        ]
        lines.append({"image": {"key": f"{at:05d}"}, "captions": captions, "judgements": judgements})
    _place(home / "labels" / "shards" / "judged" / "00000.tar", tar(members))
    _place(home / "labels" / "judgements.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


def _promote(small: SmallStore, name: str) -> Artifact:
    """A reward model with the manifests and facts of a trained one, from judgements and the first batch."""
    from assets.coco_hf_annotations import publish_annotations

    if not (small.home / "labels").exists():
        _judged(small.home)
    annotations, _ = publish_annotations(small.storage, small.settings)
    folder = small.home / "models" / name
    _place(folder / "w.safetensors", f"weights {name}".encode())
    config = {"backbone": "none", "seed": small.seed}
    manifest = Manifest("none", config, list_files(folder), {"seed": small.seed})
    _place(folder / MANIFEST, manifest.as_bytes())
    crawl = latest.require(small.store, "raw_crawl", earliest_indexed(small.store)[0].batch)
    model = artifacts.publish(
        small.store,
        "reward_model",
        digest_json([name, small.seed])[:32],
        {path.name: path for path in sorted(folder.iterdir())},
        code_version=1,
        inputs=[annotations.as_input(), crawl.as_input()],
        config=config,
        facts={
            "model_version": manifest.model_version,
            "metrics": {"preference_accuracy": _ESTIMATE, "cross_image_auc": _ESTIMATE, "test_images": 100},
            "validations": [],
            "counts": {"images": 6, "comparisons": 12, "captions_over_long": 0},
            "device": "cpu",
        },
        views=_PAGE,
    )
    latest.point(model)
    now = promoted.in_force(small.store)
    claims = [("agreement with people: preference_accuracy above 0.5", True, "0.900, 95 % interval 0.850 to 0.950")]
    promoted.promote(small.store, model, claims, Reason.given("a curator", f"{name} is good enough"), now=now)
    return model


def _publish_version(small: SmallStore, policy: Policy, *, move: bool) -> Version:
    """As `filtered_dataset` does it, without its pages."""
    from compalign_dagster.selection import current, deciding, versions
    from compalign_dagster.selection.in_force import adopt

    ledger, number = latest.numbered(small.store, "score_ledger")
    covered = max(ledger.facts["coverage"], key=lambda entry: entry["coverage"])  # the newest model of equals
    rows = parquet.read(ledger.fetch("ledger.parquet")).to_pylist()
    rows = [row for row in rows if row["model_version"] == covered["model_version"]]
    config = {"reshard": False, "coverage": covered["coverage"]}
    others = deciding.others_of(small.store, rows, policy)
    key = deciding.key_with(others, rows, policy, config)

    def make() -> Artifact:
        facts = {"coverage": covered["coverage"], "model_version": covered["model_version"]}
        facts |= {"policy": policy.model_dump(mode="json")}
        decided = deciding.decide(small.store, rows, policy, others)
        decided = replace(decided, facts={**decided.facts, **facts})
        return deciding.publish(decided, ledger, key, config=config, views=_PAGE)

    artifact, _ = latest.reuse_or_make(small.store, versions.KIND, key, make)
    if move:
        adopted = adopt(small.store, policy)
        current.move(artifact, policy=adopted.version, ledger=number)
    return Version.open(artifact)
