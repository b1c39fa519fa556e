"""Reward models that were never trained: they see colours, as well or as badly as a test wants.

And a store with such models, their evidence, and an indexed crawl, made without Dagster and in a second.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.reward import model as interface
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.reward.model import Outputs, RewardModel
from compalign_dagster.settings import Settings, load
from compalign_dagster.store import LocalStore
from tests.support.tiny_reward import COLOURS, crawl_shard, tiny_config, tiny_data

BATCH = "batch-00001"
_PLAIN = 2.0  # largest standard deviation of a picture of one colour: text has none


class ColourReward(RewardModel):
    """2 for "a red square" on a red square, 1 for another colour, 0 for other talk.

    `sees`: 1 sees the colours, -1 likes the wrong one, 0 does not look. `offset` adds as much as that for each
    image, which leaves every comparison within an image as it is. Its cosine sees nothing.
    """

    name = "colours"

    def __init__(self, sees: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.config = tiny_config()
        self.sees = torch.nn.Parameter(torch.tensor(sees))
        self.offset = torch.nn.Parameter(torch.tensor(offset))
        self.calibration = torch.tensor([12.0, -18.0], dtype=torch.float64)

    @classmethod
    def build(cls, config: Any, data: TrainingData) -> Self:
        return cls()

    def prepare(self, image: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(image.convert("RGB").resize((8, 8)), np.float32))

    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        pixels = batch.flatten(1, 2)
        return torch.cat([pixels.mean(1), pixels.std(1)], dim=1)[:, None]

    def forward(self, image_states: torch.Tensor, captions: Any, image_index: torch.Tensor) -> Outputs:
        reward = [self._reward(image_states[at, 0], text) for at, text in zip(image_index, captions, strict=True)]
        found = torch.stack(reward) if reward else torch.zeros(0)
        return Outputs.of(found, cosine=torch.zeros_like(found))

    def heads(self, image_states: torch.Tensor, captions: Any, image_index: torch.Tensor) -> torch.Tensor:
        return self(image_states, captions, image_index).reward[:, None].expand(-1, interface.HEADS)

    def _reward(self, state: torch.Tensor, text: str) -> torch.Tensor:
        colour = state[:2]  # blue is what tells squares of one colour apart
        name = min(COLOURS, key=lambda known: float((colour - torch.tensor(COLOURS[known][:2])).norm()))
        mood = (int(state[2]) % 7 - 3) * self.offset
        if text == f"a {name} square" and float(state[3:].max()) < _PLAIN:
            return 1 + self.sees + mood
        return (1.0 if "square" in text and text.startswith("a ") else 0.0) + 0.001 * len(text) + mood

    def save(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "w.safetensors")

    @classmethod
    def load(cls, folder: Path, config: Any) -> Self:
        model = cls()
        model.load_state_dict(load_file(folder / "w.safetensors"))
        return model


def registered(monkeypatch: Any) -> None:
    """Let model folders name the backbone above."""
    monkeypatch.setitem(interface._BACKBONES, ColourReward.name, (__name__, "ColourReward"))


@dataclass(frozen=True)
class World:
    """A store over `home`, the folders that go with it, and the judgements in it."""

    home: Path
    data: TrainingData
    annotations: Artifact
    settings: Settings

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.home / "store")

    @property
    def storage(self) -> Any:
        landing, labels = LocalStore(self.home / "landing"), LocalStore(self.home / "labels")
        return SimpleNamespace(store=self.store, landing=landing, labels=labels, landing_url=landing.url)

    def train(self, model: RewardModel, *, annotations: Artifact | None = None) -> Artifact:
        """Publish a model with evidence that is really measured, as the asset does."""
        from compalign_dagster.evaluation.evidence import evidence_of
        from compalign_dagster.reward.data import judged_images
        from compalign_dagster.reward.folder import model_version, save_model
        from compalign_dagster.reward.loading import loader_for
        from compalign_dagster.reward.metrics import held_out_metrics

        test = judged_images(self.data, "test")
        metrics = held_out_metrics(model.eval(), loader_for(model, self.data.shards, 8), test, seed=7)
        metrics |= {"validation_stuck_at_ln2": False, "evidence": evidence_of(model, self.data, seed=7)}
        metrics = json.loads(json.dumps(metrics))
        number = len(list((self.home / "models").glob("*"))) if (self.home / "models").exists() else 0
        folder = save_model(model, self.home / "models" / str(number), metrics=metrics)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        made = artifacts.publish(
            self.store,
            "reward_model",
            f"{number:032x}",
            files,
            code_version=1,
            inputs=[(annotations or self.annotations).as_input()],
            config={},
            facts={"model_version": model_version(folder), "metrics": metrics, "device": "cpu"},
        )
        latest.point(made)
        return made

    def index(self, shards: int = 2, pairs: int = 24) -> None:
        """Land and index a batch of shards of two corpora."""
        from assets.raw_crawl import index_batch
        from compalign_dagster.crawl import batches
        from compalign_dagster.crawl.index import Budgets

        for at in range(shards):
            crawl_shard(self.home / "landing", pairs, f"{('web', 'shop')[at % 2]}/{at:05d}.tar")
        batches.seal(self.store, LocalStore(self.home / "landing"), max_shards=9)
        index_batch(self.storage, batches.require(self.store, BATCH), Budgets())

    def score(self) -> None:
        """Score the batch with the promoted model and fold the ledger."""
        from assets.score_ledger import publish_ledger
        from assets.scored_shards import score_batch
        from resources.accelerator import Accelerator

        score_batch(self.storage, Accelerator.from_settings(self.settings), BATCH)
        publish_ledger(self.store)


def publish_annotations(store: LocalStore, data: TrainingData, folder: Path, key: str = "a") -> Artifact:
    """The judgements as the asset publishes them."""
    tables = ("images", "captions", "ranks", "comparisons")
    files = {f"{name}.parquet": parquet.write(getattr(data, name), folder / f"{name}.parquet") for name in tables}
    return artifacts.publish(
        store, "coco_hf_annotations", key * 32, files, code_version=1, inputs=[], config={}, facts={}
    )


def _split(images: pa.Table) -> pa.Table:
    """Half of the images to learn from, the rest held out, with every colour in every split."""
    splits = ("train", "validation", "test", "train")
    rows = [{**row, "split": splits[at // 4 % 4]} for at, row in enumerate(images.to_pylist())]
    return pa.Table.from_pylist(rows, images.schema)


def world(home: Path, *, judged: int = 160, **settings: Any) -> World:
    """Judgements of coloured squares in a new store; no model, no crawl."""
    data = tiny_data(home / "judged", judged=judged, rated=True)
    (home / "labels").mkdir(parents=True)
    (home / "judged" / "labels").rename(home / "labels" / "shards")
    places = {"judged/00000.tar": LocalStore(home / "labels" / "shards")}
    shards = {name: shard for name, shard in data.shards.items() if name not in places}
    shards |= {name: Shard(name, store, name) for name, store in places.items()}
    data = TrainingData(_split(data.images), data.captions, data.ranks, data.comparisons, data.crawl, shards)
    annotations = publish_annotations(LocalStore(home / "store"), data, home / "tables")
    return World(home, data, annotations, load(home=home, settle_seconds=0, device="cpu", **settings))
