"""What is measured, each in a process of its own that prints one JSON object as its last line.

    python -m benchmarks.training.parts step|features|cv OPTIONS

What belongs here: the measurements. What does not: how often, and what is written (`__main__.py`).
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CAPTION_WORDS = 12  # about what a person writes for a photo
CAPTIONS = 5  # of an image


def step(options: argparse.Namespace) -> dict[str, Any]:
    """One training step, the image encoded once for its five captions, against once for each of them.

    BLIP's own proportions (ViT/16 at 224 px, twelve layers in both towers, cross attention in each), narrower; the
    same weights, images, captions, loss and optimiser on both sides. CPU seconds on one thread: other work of the
    machine hardly shows in them.
    """
    import numpy as np
    import torch
    from torch.nn import functional as F

    from compalign_dagster.fitting import Fitting, seed_everything
    from compalign_dagster.reward.blip import TinyBlipReward
    from compalign_dagster.reward.config import reward_config

    side, layers, width = (32, 1, 32) if options.tiny else (224, 12, 192)
    shape = {"image_size": side, "vision_layers": layers, "text_layers": layers, "hidden_size": width,
             "heads": width // 64 or 1}  # fmt: skip
    config = reward_config({"backbone": "blip-tiny", **shape})
    draw = np.random.default_rng(0)
    words = [f"word{at}" for at in range(400)]
    texts = [[" ".join(draw.choice(words, CAPTION_WORDS)) for _ in range(CAPTIONS)] for _ in range(options.images)]
    torch.set_num_threads(1)
    seed_everything(0)
    model = TinyBlipReward.build(config, _only_captions([text for some in texts for text in some])).train()
    pixels = torch.from_numpy(draw.integers(0, 256, (options.images, 3, side, side), np.uint8))
    captions = [text for some in texts for text in some]
    owner = torch.arange(options.images).repeat_interleave(CAPTIONS)
    rows = torch.arange(len(captions))

    def loss(rewards: torch.Tensor) -> torch.Tensor:
        """Each image's captions in the order they are in."""
        ranked = rewards.reshape(-1, CAPTIONS)
        first, second = torch.triu_indices(CAPTIONS, CAPTIONS, 1)
        return F.softplus(ranked[:, second] - ranked[:, first]).mean()

    def once() -> torch.Tensor:
        return loss(model.heads(model.encode_images(pixels), captions, owner)[:, 0])

    def per_pair() -> torch.Tensor:
        return loss(model.heads(model.encode_images(pixels[owner]), captions, rows)[:, 0])

    apart = float((once() - per_pair()).detach().abs())
    assert apart < 1e-4, f"the two sides compute other losses: {apart}"
    found: dict[str, list[float]] = {"once": [], "per_pair": []}
    for number in range(options.steps + 1):
        for name, loss_of in (("once", once), ("per_pair", per_pair)):
            before = time.process_time()
            Fitting(model.parameters(), steps=1, lr=0.0).run(lambda at, of=loss_of: of())
            if number:  # the first of each allocates
                found[name].append(round(time.process_time() - before, 4))
    return {"cpu_seconds": found, "images": options.images, "captions": CAPTIONS, "shape": shape,
            "parameters": sum(value.numel() for value in model.parameters())}  # fmt: skip


def features(options: argparse.Namespace) -> dict[str, Any]:
    """Photographs read, decoded, prepared and encoded by the offline backbone; none of them known before."""
    from compalign_dagster.reward.config import reward_config
    from compalign_dagster.reward.loading import loader_for
    from compalign_dagster.reward.model import backbone

    shards, pairs = _photographs(options)
    places = sorted({(row["shard"], row["image_offset"], row["image_length"]) for row in pairs})[: options.images]
    config = reward_config({"backbone": "offline"})
    model = backbone("offline").build(config, _only_captions(["a photograph"]))
    images = loader_for(model, shards, config.cache_mib)
    warm = min(8, len(places) // 2)
    images.usable(places[:warm])  # loads the network
    seconds = _timed(lambda: images.usable(places[warm:]))
    return {"images": len(places) - warm, "seconds": round(seconds, 3), "rejected": len(images.rejected)}


def cv(options: argparse.Namespace) -> dict[str, Any]:
    """Five folds of the offline backbone over the judgements of Flickr8k-Expert, with all features known."""
    import tempfile

    from benchmarks.evidence.pack import load, of_source
    from compalign_dagster.evaluation.crossval import out_of_fold
    from compalign_dagster.reward.config import reward_config
    from compalign_dagster.reward.loading import loader_for
    from compalign_dagster.reward.model import backbone
    from compalign_dagster.reward.offline_encoders import encoders, remember_in

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    remember_in(options.features)
    config = reward_config({"backbone": "offline"} | ({"steps": 2} if options.tiny else {}))
    with tempfile.TemporaryDirectory() as work:
        small = 40 if options.tiny else None
        pack = load(options.datapack, Path(work), judged=small, train=small)
        data = of_source(pack.data, ["expert"])

        def known() -> None:
            model = backbone("offline").build(config, data)
            columns = ("shard", "image_offset", "image_length")
            tables = [table.select(columns).to_pylist() for table in (data.images, data.crawl)]
            places = {tuple(row[name] for name in columns) for rows in tables for row in rows}
            loader_for(model, data.shards, 0).usable(places)
            kept = encoders(config.max_caption_tokens)
            for table in (data.captions, data.crawl):
                kept.captions(table["caption"].to_pylist())

        before = _timed(known)
        seconds = _timed(lambda: out_of_fold(config, data, folds=5, matched=pack.own_captions))
        return {"minutes": round(seconds / 60, 3), "feature_minutes": round(before / 60, 3),
                "judged_images": data.images.num_rows, "crawl_pairs": data.crawl.num_rows}  # fmt: skip


def _only_captions(captions: list[str]) -> Any:
    """Training data without judgements, for a tokenizer or a centre of the captions' space."""
    import pyarrow as pa

    from compalign_dagster.annotation.tables import CAPTIONS as TEXTS
    from compalign_dagster.annotation.tables import COMPARISONS, IMAGES, RANKS
    from compalign_dagster.reward.data import TrainingData

    nothing = (schema.empty_table() for schema in (IMAGES, TEXTS, RANKS, COMPARISONS))
    return TrainingData(*nothing, pa.table({"caption": captions}), {})


def _photographs(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Shards by name and their pairs: of the data pack, or rendered pictures with the grain of photographs."""
    from compalign_dagster.crawl.index import concat, index_shard
    from compalign_dagster.crawl.shards import find_shards

    if options.datapack:
        folder = options.datapack / "flickr8k" / "shards" / "train-00000.tar"
    else:
        from benchmarks.intake.shards import _DISTINCT, write_shards

        folder = options.work / "pictures"
        options.images = min(options.images, _DISTINCT)  # the same picture again would be known
        write_shards(folder, 1, options.images)
    shards = find_shards([str(folder)])
    pairs = concat([index_shard(shard) for shard in shards]).pairs
    return {shard.name: shard for shard in shards}, pairs.to_pylist()


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _peak_mib() -> int | None:
    """Most memory that this process ever held, MiB; None where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["step", "features", "cv"])
    parser.add_argument("--datapack", type=Path)
    parser.add_argument("--features", type=Path, help="where frozen features are kept between runs of cv")
    parser.add_argument("--work", type=Path, help="folder for what has to be made")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    measured = {"step": step, "features": features, "cv": cv}[given.part](given)
    print(json.dumps({**measured, "peak_mib": _peak_mib()}))
    sys.exit()
