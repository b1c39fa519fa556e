"""Our engine, the bare forward pass that bounds it, and a plain loop over transformers; each serves in its own process.

    python -m benchmarks.scoring.sides engine|bare|loop FOLDER [PRECISION...]

A work is called `PRECISION SET`. The bare forward pass has prepared images and tokens in memory, keeps converted
weights from batch to batch, and takes the batch size that was fastest for it; the plain loop takes its fastest too.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.scoring.inputs import pairs
from benchmarks.scoring.serving import Work, serve, timed

if TYPE_CHECKING:
    from compalign_dagster.crawl.shards import Shard

SETS = ("one", "five")
BATCHES = (8, 16, 32)
_TRIED = 32  # images on which a batch size is chosen


def engine(folder: Path, precisions: Sequence[str]) -> dict[str, Work]:
    """Our scorer with the settings it has by default, and as many torch threads as the process was given."""
    from compalign_dagster.reward.folder import load_model
    from compalign_dagster.scoring.engine import Scorer, ScoringConfig

    def work(precision: str, name: str) -> Work:
        shard, index = indexed(folder, name)
        config = ScoringConfig(precision=precision, device="cpu", threads=int(os.environ["OMP_NUM_THREADS"]))
        scorer = Scorer(load_model(folder / "reward"), "0" * 64, config)

        def run() -> dict[str, Any]:
            found = scorer.score(shard, index.pairs)
            assert not len(found.quarantine)
            return {"pairs": len(found.scores), "itm": found.scores["itm"].to_pylist(), "stages": dict(found.stages)}

        return lambda: run

    return _works(work, precisions)


def bare(folder: Path, precisions: Sequence[str]) -> dict[str, Work]:
    """Our network on tensors in memory."""
    import torch
    from PIL import Image

    from compalign_dagster.images import decode
    from compalign_dagster.reward.folder import load_model

    model: Any = load_model(folder / "reward")
    model.tokenizer = _Remembering(model.tokenizer)
    limit = Image.MAX_IMAGE_PIXELS or 1 << 26

    def work(precision: str, name: str) -> Work:
        listed = pairs(folder, name)
        files = list(dict.fromkeys(pair["image"] for pair in listed))
        images = torch.stack(
            [model.prepare(decode(Path(file).read_bytes(), max_pixels=limit, side=model.image_side)) for file in files]
        )
        texts = [[pair["caption"] for pair in listed if pair["image"] == file] for file in files]

        def run(size: int, most: int | None = None) -> dict[str, Any]:
            found = []
            with torch.inference_mode(), _precision(precision):
                for start in range(0, len(images[:most]), size):
                    own = texts[start : start + size]
                    owner = torch.tensor([at for at, some in enumerate(own) for _ in some])
                    states = model.encode_images(images[start : start + size])
                    found.append(model(states, [text for some in own for text in some], owner).itm)
            itm = torch.cat(found).tolist()
            return {"pairs": len(itm), "itm": itm, "batch": size}

        return _at_its_best(run)

    return _works(work, precisions)


def loop(folder: Path, precisions: Sequence[str]) -> dict[str, Work]:
    """What one writes first: a DataLoader over files, transformers' processor and model, in batches."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from transformers import BertTokenizer, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

    processor = BlipProcessor(
        BlipImageProcessor.from_pretrained(folder / "blip"), BertTokenizer.from_pretrained(folder / "blip")
    )
    model = BlipForImageTextRetrieval.from_pretrained(folder / "blip").eval()

    def together(some: list[dict[str, str]]) -> Any:
        images = []
        for pair in some:
            with Image.open(pair["image"]) as image:
                images.append(image.convert("RGB"))
        return processor(
            text=[pair["caption"] for pair in some],
            images=images,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=512,
        )

    def work(precision: str, name: str) -> Work:
        listed = pairs(folder, name)

        def run(size: int, most: int | None = None) -> dict[str, Any]:
            found = []
            with torch.inference_mode(), _precision(precision):
                for batch in DataLoader(listed[:most], batch_size=size, collate_fn=together):  # type: ignore[arg-type]
                    found.append(model(**batch).itm_score.float().softmax(-1)[:, 1])
            itm = torch.cat(found).tolist()
            return {"pairs": len(itm), "itm": itm, "batch": size}

        return _at_its_best(run)

    return _works(work, precisions)


class _Remembering:
    """A tokenizer that answers from memory what it was asked before."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._known = tokenizer, dict[tuple[str, ...], Any]()

    def __call__(self, captions: list[str], **options: Any) -> Any:
        key = tuple(captions)
        if key not in self._known:
            self._known[key] = self._tokenizer(captions, **options)
        return self._known[key]


def _at_its_best(run: Callable[..., dict[str, Any]]) -> Work:
    """A work with the batch size that took least CPU time, tried when it is first asked for."""
    chosen: list[int] = []

    def prepare() -> Callable[[], dict[str, Any]]:
        if not chosen:
            seconds = {size: timed(partial(run, size, _TRIED))["cpu_seconds"] for size in BATCHES}
            chosen.append(min(BATCHES, key=lambda size: seconds[size]))
            run(chosen[0])  # and tokens of every batch in memory
        return lambda: run(chosen[0])

    return prepare


def _works(work: Callable[[str, str], Work], precisions: Sequence[str]) -> dict[str, Work]:
    return {f"{precision} {name}": work(precision, name) for precision in precisions for name in SETS}


def _precision(precision: str) -> Any:
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def indexed(folder: Path, name: str) -> "tuple[Shard, Any]":
    """The shard `NAME.tar` of a folder and its index."""
    from compalign_dagster.crawl.index import index_shard
    from compalign_dagster.crawl.shards import Shard
    from compalign_dagster.store import LocalStore

    shard = Shard(f"{name}.tar", LocalStore(folder), f"{name}.tar")
    return shard, index_shard(shard)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    serve({"engine": engine, "bare": bare, "loop": loop}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:]))
