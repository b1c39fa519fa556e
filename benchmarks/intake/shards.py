"""Shards to measure with: rendered images with the grain of photographs, as img2dataset writes them."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (640, 480)
QUALITY = 90
_DISTINCT = 64
_WORDS = ("a red car", "on the street", "an old dog", "near a tree", "in snow", "at night", "two people")


def write_shards(folder: Path, shards: int, samples: int) -> dict[str, float]:
    """Write `shards` tars of `samples` images, captions and records each; what they are, as figures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [_picture(seed) for seed in range(_DISTINCT)]
    first = folder / "00000.tar"
    noise = np.random.default_rng(1)
    with tarfile.open(first, "w") as archive:
        for at in range(samples):
            caption = " ".join(noise.choice(_WORDS, 5))
            record = {"key": f"{at:09d}", "caption": caption, "url": f"https://example.org/{at}.jpg", "width": 640}
            _add(archive, f"{at:09d}.jpg", pictures[at % _DISTINCT])
            _add(archive, f"{at:09d}.txt", caption.encode())
            _add(archive, f"{at:09d}.json", json.dumps(record).encode())
    for at in range(1, shards):
        os.link(first, folder / f"{at:05d}.tar")
    mean = sum(map(len, pictures)) / _DISTINCT
    return {"shards": shards, "samples_per_shard": samples, "mean_image_bytes": round(mean)}


def _picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed)
    pixels = np.zeros((SIDES[1], SIDES[0], 3)) + 40
    for cells, weight in ((4, 90), (12, 50), (60, 30)):
        grid = Image.fromarray(noise.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += weight / 255 * np.asarray(grid.resize(SIDES, Image.Resampling.BICUBIC), float)
    pixels += noise.normal(0, 5, (SIDES[1], SIDES[0], 1))
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))
