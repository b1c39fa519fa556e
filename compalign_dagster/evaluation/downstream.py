"""What a training set is worth: a small dual encoder trained on it, tested by retrieval.

What belongs here: the training sets that are compared (arms) and the equal training of each. What does
not: the network (`encoder.py`), the figures (`retrieval.py`), where pixels come from (`inputs.py`).

Every arm gets the same network, steps, batch and learning rate, so an arm with fewer pairs sees each
more often. Filtered arms have equal size, budget by budget: a gain over the random arm is then the
choice of pairs and nothing else.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from compalign_dagster.errors import InputError
from compalign_dagster.evaluation.encoder import (
    SHIFT_PX,
    DualEncoder,
    FeatureTower,
    PixelTower,
    TextTower,
    Vocabulary,
    shifted,
)
from compalign_dagster.evaluation.retrieval import both_ways, difference, recall, right_answers
from compalign_dagster.fitting import fit, seed_everything
from compalign_dagster.selection.select import OCCURRENCE, ranked_by

CODE_VERSION = 1

CHOSEN = "reward"  # the arm the others are controls of
CONTROLS = ("everything", "random", "cosine")

Arms = dict[str, list[np.ndarray]]
"""By arm and training seed, the rows trained on, int64, rising."""

_INITIALISING = threading.Lock()

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DownstreamConfig:
    """Compute of one training, the same for every arm. `images` says what the image tower reads."""

    steps: int = 120
    batch: int = 96  # pairs
    lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.1  # share of the steps
    seeds: tuple[int, ...] = (0, 1, 2)
    images: str = "pixels"  # or "frozen": precomputed features of images and captions
    image_px: int = 64


@dataclass(frozen=True)
class Pairs:
    """Images and captions ready for the network.

    `images`: uint8 [N, H, W, 3] or float32 features [N, F]; `image_of`: int64 [P], the image of each pair
    (-1: not loaded, may not be drawn); `captions`: P texts; `texts`: float32 [P, E] when features.
    """

    images: np.ndarray
    image_of: np.ndarray
    captions: Sequence[str]
    texts: np.ndarray | None = None


def make_arms(decided: pl.DataFrame, seeds: Sequence[int]) -> Arms:
    """The arms for decided pairs (`report.crawl_table`), as row numbers of `decided`.

    `reward` is what was kept; `random` (drawn anew for each seed) and `cosine` keep as many of each
    budget. `cosine` is missing when some pair has none.
    """
    table = decided.with_row_index("row")
    budgets = [rows for _, rows in sorted(table.partition_by("budget", as_dict=True).items())]
    sizes = [int(rows["kept"].sum()) for rows in budgets]
    places = [rows.sort(OCCURRENCE)["row"].to_numpy() for rows in budgets]

    def union(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.sort(np.concatenate(parts).astype(np.int64)) if parts else np.zeros(0, np.int64)

    def random(seed: int) -> np.ndarray:
        generator = np.random.default_rng([seed, 0x5EED])
        return union([generator.permutation(rows)[:k] for rows, k in zip(places, sizes, strict=True)])

    arms = {
        "everything": [np.arange(decided.height)] * len(seeds),
        "random": [random(seed) for seed in seeds],
    }
    cosine = decided["cosine"].is_finite().fill_null(False) if "cosine" in decided.columns else None
    if cosine is not None and cosine.all():
        ranked = [ranked_by(rows, "cosine")["row"].to_numpy() for rows in budgets]
        arms["cosine"] = [union([rows[:k] for rows, k in zip(ranked, sizes, strict=True)])] * len(seeds)
    arms[CHOSEN] = [union([rows.filter("kept")["row"].to_numpy() for rows in budgets])] * len(seeds)
    return arms


def schedule(rows: np.ndarray, config: DownstreamConfig, seed: int) -> np.ndarray:
    """Which rows each step trains on, int64 [steps, batch]: all rows in random order, again and again."""
    generator = np.random.default_rng([seed, 0xD0])
    wanted = config.steps * config.batch
    epochs = [generator.permutation(rows) for _ in range(-(-wanted // len(rows)))]
    return np.concatenate(epochs)[:wanted].reshape(config.steps, config.batch)


def drawn_rows(arms: Arms, config: DownstreamConfig) -> np.ndarray:
    """All rows that any training will see, int64, rising: the only images that need to be loaded."""
    drawn = [
        np.unique(schedule(rows, config, seed))
        for arm in arms.values()
        for rows, seed in zip(arm, config.seeds, strict=True)
    ]
    return np.unique(np.concatenate(drawn))


def compare(
    train: Pairs,
    arms: Arms,
    test: Pairs,
    config: DownstreamConfig,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Any]:
    """Train every arm with every seed and test it: JSON values in the layout of `evaluation.report`.

    `arms[name]` has `pairs`, `vocabulary`, `loss` (mean of the last tenth), and `retrieval.recall` by
    direction; `minus[control]` is the reward arm less that control. Raises `InputError` when an arm or
    the test set is too small to train or test.
    """
    _refuse_small(arms, test)
    right = right_answers(test.captions, test.image_of, len(test.images))
    work = [(rows, seed) for by_seed in arms.values() for rows, seed in zip(by_seed, config.seeds, strict=True)]
    trained = _on_cores(
        lambda job: _train_and_rank(train, job[0], test, right, config, job[1]),
        work,
        lambda done: progress(done, len(work), "downstream: trainings"),
    )
    found: dict[str, dict[str, np.ndarray]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for at, (name, by_seed) in enumerate(arms.items()):
        mine = trained[at * len(config.seeds) : (at + 1) * len(config.seeds)]
        found[name] = {way: np.stack([ranks[way] for ranks, _ in mine]) for way in mine[0][0]}
        loss = float(np.mean([loss for _, loss in mine]))
        figures[name] = {"pairs": len(by_seed[0]), "loss": round(loss, 4)}
        figures[name] |= recall(found[name], test.image_of, seed=config.seeds[0])
        log.info("downstream: %s (%d pairs) R@1 %.3f / %.3f", name, len(by_seed[0]), *_first(figures[name]))
    minus = {
        name: difference(found[CHOSEN], found[name], test.image_of, seed=config.seeds[0])
        for name in CONTROLS
        if name in found and CHOSEN in found
    }
    return {
        "arms": figures,
        "minus": minus,
        "test_images": len(test.images),
        "test_captions": len(test.captions),
        **{key: value for key, value in asdict(config).items() if key != "seeds"},
        "seeds": len(config.seeds),
        "pairs_seen": config.steps * config.batch,
    }


def _train_and_rank(
    train: Pairs, rows: np.ndarray, test: Pairs, right: np.ndarray, config: DownstreamConfig, seed: int
) -> tuple[dict[str, np.ndarray], float]:
    """Ranks of both directions on the test set, and the loss at the end."""
    steps = schedule(rows, config, seed)
    shifts = np.random.default_rng([seed, 0x51]).integers(0, 2 * SHIFT_PX + 1, (config.steps, 2)).tolist()
    images = torch.from_numpy(train.images)
    words = Vocabulary([train.captions[row] for row in rows]) if train.texts is None else None
    if words is not None:
        texts, queries = _terms(words, train.captions, rows), torch.from_numpy(words.encode(test.captions))
    else:
        texts, queries = torch.from_numpy(train.texts), torch.from_numpy(test.texts)
    with _INITIALISING:  # the generator of initial weights belongs to the whole process
        seed_everything(seed)
        image = PixelTower(images.shape[1]) if images.ndim == 4 else FeatureTower(images.shape[1])
        text = FeatureTower(texts.shape[1]) if words is None else TextTower(len(words))
        network = DualEncoder(image, text).train()

    def loss(step: int) -> Tensor:
        drawn = steps[step]
        batch = images[train.image_of[drawn]]
        return network.loss(shifted(batch, *shifts[step]) if batch.ndim == 4 else batch, texts[drawn])

    curve = fit(
        network.parameters(),
        loss,
        steps=config.steps,
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
    )
    found = both_ways(network.similarity(torch.from_numpy(test.images), queries), right)
    return found, float(np.mean(curve[-max(1, config.steps // 10) :]))


def _on_cores(run: Callable[[Any], Any], work: Sequence[Any], done: Callable[[int], None]) -> list[Any]:
    """`run` of each piece of work, in order: pieces in parallel, each on one thread.

    Trainings this small lose more to threads waiting for each other than they gain; and on one thread
    a training gives the same bytes on any number of cores.
    """
    workers = max(1, min(torch.get_num_threads(), len(work)))
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(run, piece) for piece in work]
        done(0)
        try:
            for count, future in enumerate(as_completed(waiting), start=1):
                future.result()
                done(count)
        except BaseException:
            for future in waiting:
                future.cancel()  # what has not begun; the first failure is the one to report
            raise
        return [future.result() for future in waiting]


def _terms(words: Vocabulary, captions: Sequence[str], rows: np.ndarray) -> Tensor:
    """Terms of the captions of `rows`, at their places among all captions."""
    encoded = words.encode([captions[row] for row in rows])
    table = torch.zeros((len(captions), encoded.shape[1]), dtype=torch.int64)
    table[torch.from_numpy(rows)] = torch.from_numpy(encoded)
    return table


def _first(figures: Mapping[str, Any]) -> tuple[float, float]:
    return figures["image_to_text"]["r1"]["value"], figures["text_to_image"]["r1"]["value"]


def _refuse_small(arms: Arms, test: Pairs) -> None:
    for name, by_seed in arms.items():
        if min(len(rows) for rows in by_seed) < 2:
            raise InputError(
                f"training set {name}",
                expected="at least two pairs to contrast",
                found=f"{min(len(rows) for rows in by_seed)}",
                remedy="Keep a larger fraction, or land more shards.",
            )
    if len(test.images) < 2:
        raise InputError(
            "evaluation shards",
            expected="at least two images",
            found=str(len(test.images)),
            remedy="Land clean held-out shards in the evaluation folder.",
        )
