"""What all sides score: shards and the same images as files, the same weights for everybody, and pairs in one order.

    FOLDER/one.tar, five.tar     640 x 480 JPEG with one and with five captions each
    FOLDER/images/*.jpg          the same bytes, for programs that read files
    FOLDER/one.json, five.json   [{"image": file, "caption": text}], in the order of the shard
    FOLDER/blip/                 a BLIP for image-text matching with random weights, as transformers saves it
    FOLDER/reward/               our reward model on these weights, with an untrained head

Photographs of the data pack where there is one; they are 224 px a side there, and scaled up. Rendered ones elsewhere.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZE = (640, 480)
QUALITY = 90
WORDS = (
    "a red car,an old dog,two people,a child in a pink dress,three birds,a green boat;"
    "on the street,near a tree,in the snow,at night,by the sea,under a bridge;"
    "while it rains,with a ball,and a bicycle,in the morning sun,beside a stone wall,without a hat"
)
SHAPE = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "initializer_range": 384**-0.5}
VISION_LAYERS, TEXT_LAYERS, SIDE, PATCH, VOCABULARY = 8, 4, 224, 16, 2000


def make(folder: Path, datapack: Path | None, *, one: int, five: int) -> dict[str, Any]:
    """Write everything for `one` images with one caption and `five` images with five; facts about it."""
    (folder / "images").mkdir(parents=True)
    pictures = list(_photographs(datapack, max(one, five)) if datapack else _rendered(max(one, five)))
    for at, (data, _) in enumerate(pictures):
        (folder / "images" / f"{at:05d}.jpg").write_bytes(data)
    for name, images, captions in (("one", one, 1), ("five", five, 5)):
        _shard(folder, name, [(data, texts[:captions]) for data, texts in pictures[:images]])
    return {
        "images": "photographs of the data pack, scaled up to 640 x 480" if datapack else "rendered, 640 x 480",
        "mean_image_bytes": round(sum(len(data) for data, _ in pictures) / len(pictures)),
        "pairs": {"one": one, "five": 5 * five},
        "parameters": _weights(folder, [text for _, texts in pictures for text in texts]),
    }


def pairs(folder: Path, name: str) -> list[dict[str, str]]:
    """`image` (path) and `caption` of each pair of a set, in the order of its shard."""
    return json.loads((folder / f"{name}.json").read_text())


def _shard(folder: Path, name: str, samples: list[tuple[bytes, list[str]]]) -> None:
    listed = []
    with tarfile.open(folder / f"{name}.tar", "w") as archive:
        for at, (data, texts) in enumerate(samples):
            record = json.dumps({"captions": texts}).encode()
            for suffix, content in (("jpg", data), ("json", record)):
                member = tarfile.TarInfo(f"{at:05d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            listed += [{"image": str(folder / "images" / f"{at:05d}.jpg"), "caption": text} for text in texts]
    (folder / f"{name}.json").write_text(json.dumps(listed))


def _photographs(datapack: Path, count: int) -> Iterator[tuple[bytes, list[str]]]:
    """JPEG bytes and five captions of the first photographs of flickr8k."""
    from PIL import Image

    with tarfile.open(datapack / "flickr8k" / "shards" / "train-00000.tar") as archive:
        data, given = b"", 0
        for member in archive:
            stream = archive.extractfile(member)
            content = stream.read() if stream else b""
            if member.name.endswith(".jpg"):
                data = content
            elif len(texts := json.loads(content)["captions"]) == 5:
                with Image.open(io.BytesIO(data)) as image:
                    yield _jpeg(image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)), texts
                given += 1
                if given == count:
                    return


def _rendered(count: int) -> Iterator[tuple[bytes, list[str]]]:
    """The same of smooth colours with edges and grain, and captions of random phrases."""
    import numpy as np
    from PIL import Image

    phrases = [part.split(",") for part in WORDS.split(";")]
    for seed in range(count):
        noise = np.random.default_rng(seed)
        pixels = np.zeros((SIZE[1], SIZE[0], 3)) + 40
        for cells, weight in ((4, 90), (12, 50), (60, 30)):
            grid = Image.fromarray(noise.integers(0, 256, (cells, cells, 3), np.uint8))
            pixels += weight / 255 * np.asarray(grid.resize(SIZE, Image.Resampling.BICUBIC), float)
        pixels += noise.normal(0, 5, (SIZE[1], SIZE[0], 1))
        texts = [" ".join(noise.choice(part) for part in phrases[: 1 + at % 3]) for at in range(5)]
        yield _jpeg(Image.fromarray(pixels.clip(0, 255).astype(np.uint8))), texts


def _jpeg(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _weights(folder: Path, captions: list[str]) -> int:
    """Save the network, its tokenizer and processor, and our model on it; how many parameters the network has."""
    import torch
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

    from compalign_dagster.reward.blip import BlipReward
    from compalign_dagster.reward.config import reward_config
    from compalign_dagster.reward.folder import save_model
    from compalign_dagster.reward.tokenizer import train_tokenizer

    torch.manual_seed(7)
    tokenizer = train_tokenizer(captions, vocabulary_size=VOCABULARY)
    vision = SHAPE | {"num_hidden_layers": VISION_LAYERS, "image_size": SIDE, "patch_size": PATCH}
    text = SHAPE | {
        "num_hidden_layers": TEXT_LAYERS,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = BlipConfig(vision_config=vision, text_config=text, initializer_range=SHAPE["initializer_range"])
    blip = BlipForImageTextRetrieval(config).eval()
    blip.save_pretrained(folder / "blip")
    processor = BlipProcessor(BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer)
    processor.save_pretrained(folder / "blip")
    nothing: Any = None  # pretrained weights are built without data
    ours = BlipReward.build(reward_config({"backbone": "blip", "model": str(folder / "blip")}), nothing)
    save_model(ours.eval(), folder / "reward")
    return sum(value.numel() for value in blip.parameters())
