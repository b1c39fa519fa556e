"""Stage 1 many times over one crawl: how every image and caption agree is looked up, never computed again.

What belongs here: the table of agreements and a model that reads it. What does not: figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from compalign_dagster.fitting import Order
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.data import JudgedImage, Place, TrainingData, judged_images
from compalign_dagster.reward.learning import learn
from compalign_dagster.reward.loading import loader_for, states_of
from compalign_dagster.reward.model import no_progress
from compalign_dagster.reward.objective import Objective
from compalign_dagster.reward.offline import OfflineReward
from compalign_dagster.reward.pretraining import crawl_pairs
from compalign_dagster.reward.stages import Stages
from compalign_dagster.reward.uncertainty import Fitted, fit_posterior, information

PRECISION = 10**0.5  # of the prior where too little is labelled to fit one; what whole training sets come to


@dataclass(frozen=True)
class Table:
    """Agreements [I, C, 2] of all images and captions, the images' vectors [I, 384], the captions' [C, 384]."""

    image: dict[Place, int]
    caption: dict[str, int]
    agreements: Tensor
    vectors: Tensor
    seen: Tensor

    def batch(self, places: Sequence[Place]) -> Tensor:
        """What the model below takes for image states, [B, 1, 1]: places in this table. As an `ImageLoader`."""
        return torch.tensor([self.image[place] for place in places], dtype=torch.float32)[:, None, None]


class Remembered(OfflineReward):
    """The offline backbone, with agreements from a table."""

    table: Table

    def _compare(self, image_states: Tensor, captions: Sequence[str], image_index: Tensor) -> tuple[Tensor, Tensor]:
        rows = image_states[:, 0, 0].long()[image_index]
        columns = torch.tensor([self.table.caption[text] for text in captions], dtype=torch.int64)
        return self.table.agreements[rows, columns], self.table.vectors[rows] * self.table.seen[columns]


def rows_of(model: Remembered, images: Sequence[JudgedImage]) -> tuple[Tensor, Tensor]:
    """Features [N, K] and rewards [N] of all captions of these images, one image after another; float64."""
    index = torch.tensor([at for at, image in enumerate(images) for _ in image.captions], dtype=torch.int64)
    texts = [text for image in images for text in image.captions]
    with torch.no_grad():
        features = model.features(model.table.batch([image.place for image in images]), texts, index).double()
        return features, features @ model.last_layer().double()


def learn_table(config: RewardConfig, data: TrainingData) -> Table:
    """Learn the crawl once and compare every judged image with every judged caption.

    None of the crawl's images may be judged: each fold would need a crawl of its own.
    """
    judged = [image for split in ("train", "validation", "test") for image in judged_images(data, split)]
    model = OfflineReward.build(config, data)
    images = loader_for(model, data.shards, config.cache_mib)
    pairs, held_back = crawl_pairs(data, limit=config.crawl_pairs, seed=config.seed)
    assert not held_back, "a judged image is in the crawl"
    usable = images.usable(place for place, _ in pairs)
    readable = [pair for pair in pairs if pair[0] in usable]
    drawn = Order(len(readable), config.crawl_pairs, config.seed).at(0)
    model.learn_crawl(images, [readable[at] for at in sorted(drawn)], progress=no_progress)
    captions = sorted({text for image in judged for text in image.captions})
    agreements, vectors = [], []
    with torch.no_grad():
        seen = model.crawl.seen(model.frozen.captions(captions, model.device))
        for image in judged:
            view = model.crawl.view(states_of(model, images, [image.place])[:, 0].float())
            agreements.append(model.crawl.agreements(view, seen, torch.zeros(len(captions), dtype=torch.int64)))
            vectors.append(view.vector[0])
    return Table(
        {image.place: at for at, image in enumerate(judged)},
        {text: at for at, text in enumerate(captions)},
        torch.stack(agreements),
        torch.stack(vectors),
        seen,
    )


class Trainer:
    """Stage 1 of a configuration over a table, as often as asked."""

    def __init__(self, config: RewardConfig, table: Table) -> None:
        self.config, self.table = config, table
        self._accelerator = Accelerator(cpu=True)
        self._start = self.untrained().last_layer().detach()

    def untrained(self) -> Remembered:
        """A head that no judgement has touched."""
        model = Remembered(self.config)
        model.table = self.table
        return model.eval()

    def head(
        self, train: Sequence[JudgedImage], validation: Sequence[JudgedImage] = (), **changed: Any
    ) -> tuple[Remembered, Objective]:
        """A trained model; without validation images the weights of the last step are kept."""
        config = replace(self.config, **changed)
        torch.manual_seed(config.seed)
        model = Remembered(config)
        model.table = self.table
        objective = Objective(model, self.table, list(train))  # type: ignore[arg-type]
        splits = {"train": list(train), "validation": list(validation)}
        learn(Stages(model, self._accelerator, no_progress, None), objective, splits, None)
        model.eval()
        return model, objective

    def sure_head(
        self, train: Sequence[JudgedImage], validation: Sequence[JudgedImage] = (), **changed: Any
    ) -> tuple[Remembered, Fitted]:
        """The same with its posterior, at the precision that validation says or, without, at `PRECISION`."""
        model, objective = self.head(train, validation, **changed)
        useful = objective.useful(train)
        fitted = fit_posterior(objective, useful, validation, self._start) if validation else None
        return model, fitted or Fitted(information(objective, objective.last_layer(useful)), PRECISION)
