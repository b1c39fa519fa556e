"""Shards of different pictures as JPEG with differing captions: something that untrained models rank finely."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from compalign_dagster.crawl.shards import Shard
from compalign_dagster.store import LocalStore
from tests.support.tiny_reward import write_tar

WORDS = ("red", "green", "dog", "cat", "tree", "house", "two", "three", "runs", "sleeps", "under", "near", "old", "a")


def picture(seed: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """Smooth colours with edges and some grain, as photos have them; size is width and height in pixels."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    blocks = Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8)).resize(size, Image.Resampling.NEAREST)
    pixels = np.asarray(Image.blend(coarse, blocks, 0.4), np.float32) + generator.normal(0, 6, (size[1], size[0], 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    """The image as JPEG."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def caption(seed: int) -> str:
    """2 to 12 words."""
    generator = np.random.default_rng(seed)
    return " ".join(generator.choice(WORDS, generator.integers(2, 13)))


def scenes_shard(
    folder: Path, images: int, captions: int = 1, name: str = "web/00000.tar", size: tuple[int, int] = (640, 480)
) -> Shard:
    """A shard of so many JPEGs, each with so many captions (a list in its .json)."""
    import json

    members = []
    for at in range(images):
        texts = [caption(at * captions + own) for own in range(captions)]
        members.append((f"{at:05d}.jpg", jpeg(picture(at, size))))
        members.append((f"{at:05d}.json", json.dumps({"captions": texts}).encode()))
    write_tar(folder / name, members)
    return Shard(name, LocalStore(folder), name)
