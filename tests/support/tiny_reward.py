"""The smallest training data that a reward model can learn from: plain coloured squares.

Imports nothing but what a bare GPU machine has, because a test trains with it where nothing else exists.
"""

import hashlib
import io
import math
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from compalign_dagster.annotation.tables import CAPTIONS, COMPARISONS, IMAGES, RANKS
from compalign_dagster.crawl.index import index_shard
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.reward.config import RewardConfig, reward_config
from compalign_dagster.reward.data import JudgedImage, TrainingData
from compalign_dagster.store import LocalStore

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (20, 40, 220), "yellow": (240, 220, 20)}
NAMES = tuple(COLOURS)
NOT_RATED = (math.nan,) * 4
TINY = {
    "backbone": "blip-tiny",
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "heads": 2,
    "vision_layers": 1,
    "text_layers": 1,
    "joint_size": 16,
    "vocabulary_size": 100,
    "max_caption_tokens": 12,
    "pretrain_steps": 2,
    "pretrain_batch": 8,
    "steps": 2,
    "batch_images": 8,
    "validate_every": 1,
}


def tiny_config(**settings: object) -> RewardConfig:
    return reward_config({**TINY, **settings})


def square(colour: str, shade: int) -> bytes:
    """A PNG of one colour; `shade` makes it unique."""
    red, green, blue = COLOURS[colour]
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (red, green, (blue + shade) % 256)).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> dict[str, tuple[int, int]]:
    """Write a tar and return offset and length of every member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as archive:
        return {member.name: (member.offset_data, member.size) for member in archive}


def crawl_shard(folder: Path, count: int = 24, name: str = "web/00000.tar") -> Shard:
    """A shard of squares; every third caption names another colour."""
    members = []
    for at in range(count):
        colour = NAMES[at % 4] if at % 3 else NAMES[(at + 1) % 4]
        members += [
            (f"{at:04d}.png", square(NAMES[at % 4], at)),
            (f"{at:04d}.txt", f"a {colour} square".encode()),
        ]
    write_tar(folder / name, members)
    return Shard(name, LocalStore(folder), name)


def tiny_data(
    folder: Path, *, judged: int = 30, labeler_prefers_right: bool = True, rated: bool = False
) -> TrainingData:
    """Judged squares (captions a: right, b: wrong colour, c: shop talk) and one crawl shard.

    `rated`: two labelers rate accuracy and completeness, one of them vividness, nobody context.
    """
    colours = [NAMES[at % 4] for at in range(judged)]
    pictures = [square(colour, 100 + at) for at, colour in enumerate(colours)]
    name = "judged/00000.tar"
    places = write_tar(folder / "labels" / name, [(f"{at:04d}.png", data) for at, data in enumerate(pictures)])
    images, captions, comparisons, ranks = [], [], [], []
    for at, (colour, data) in enumerate(zip(colours, pictures, strict=True)):
        image_id = hashlib.sha256(data).hexdigest()
        offset, length = places[f"{at:04d}.png"]
        split = ("validation", "test")[at % 10] if at % 10 < 2 else "train"
        images.append(
            {
                "image_id": image_id,
                "shard": name,
                "key": f"{at:04d}",
                "image_offset": offset,
                "image_length": length,
                "split": split,
            }
        )
        wrong = NAMES[(NAMES.index(colour) + 1) % 4]
        texts = {"a": f"a {colour} square", "b": f"a {wrong} square", "c": "buy now"}
        captions += [
            {"image_id": image_id, "caption_id": key, "caption": text, "caption_source": "human"}
            for key, text in texts.items()
        ]
        order = "abc" if labeler_prefers_right else "bac"
        comparisons += [
            {"image_id": image_id, "labeler": "l", "better": better, "worse": worse, "tie": False}
            for better, worse in (order[:2], order[::2], order[1:])
        ]
        comparisons.append({"image_id": image_id, "labeler": "m", "better": "b", "worse": "c", "tie": True})
        for caption_id, accuracy, vividness in zip(order, (5, 2, 1), (4, 4, 1), strict=True):
            given = {"image_id": image_id, "caption_id": caption_id, "accuracy": accuracy, "completeness": accuracy}
            ranks += [{**given, "labeler": "l", "vividness": vividness}, {**given, "labeler": "m"}]
    crawl = crawl_shard(folder / "landing")
    label = Shard(name, LocalStore(folder / "labels"), name)
    return TrainingData(
        pa.Table.from_pylist(images, IMAGES),
        pa.Table.from_pylist(captions, CAPTIONS),
        pa.Table.from_pylist(ranks if rated else [], RANKS),
        pa.Table.from_pylist(comparisons, COMPARISONS),
        index_shard(crawl).pairs,
        {name: label, crawl.name: crawl},
    )


def judged_image(captions: Sequence[str], **more: Any) -> JudgedImage:
    """A judged image made by hand: its first caption beats its second, nobody rated, unless `more` says so."""
    count = len(captions)
    given: dict[str, Any] = {
        "image_id": "i",
        "place": ("s", 0, 1),
        "better": (0,),
        "worse": (1,),
        "ties": 0,
        "top": (0,),
        "caption_ids": tuple(str(at) for at in range(count)),
        "caption_sources": ("human",) * count,
        "ratings": (NOT_RATED,) * count,
        **more,
    }
    rated = tuple(float(any(not math.isnan(value) for value in row)) for row in given["ratings"])
    defaults = {"weight": (1.0,) * len(given["better"]), "trust": rated}
    return JudgedImage(captions=tuple(captions), **{**defaults, **given})
