"""The parts of the sample crawl: the crawl itself, the judged images, the clean evaluation pairs.

What belongs here: how many of what, mixed how. What does not: drawing (`scenes.py`), wording
(`captions.py`), judging (`labelers.py`), damage (`hostile.py`), laying out members (`members.py`).
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from compalign_dagster.parquet import column
from compalign_dagster.samples.captions import (
    CRITERIA,
    GOOD_KINDS,
    MIXTURES,
    WORST,
    Caption,
    draw_kind,
    write_caption,
)
from compalign_dagster.samples.hostile import HOSTILE, hostile_sample
from compalign_dagster.samples.labelers import LABELERS, judge
from compalign_dagster.samples.members import Sample, write_shard
from compalign_dagster.samples.scenes import Scene, random_scene, render
from compalign_dagster.versions import digest_bytes

logger = logging.getLogger(__name__)

JUDGED_PER_SHARD = 500  # images
_SHOP_EVERY = 4  # every fourth shard belongs to the noisier corpus
_SHARED = 10  # every tenth judged image is judged by all labelers, the others by one
_TWO_CAPTIONS = 0.05  # share of samples with two captions
_EMPTY = 0.01  # share of further samples whose caption is empty
_REPEATED = 0.005  # share of further samples that repeat one already there
_HOSTILE_EVERY = 2000  # one of each hostile kind for so many pairs

# Where the captions of a judged image come from: source, captioner, mixture of kinds.
_SLOTS: tuple[tuple[str, str | None, dict[str, int]], ...] = (
    ("human", None, {"complete": 85, "thin": 15}),
    ("crawled", None, dict(MIXTURES["sample"])),
    ("crawled", None, dict(MIXTURES["sample-shop"])),
    (
        "model",
        "sample-captioner-large",
        {"complete": 45, "thin": 25, "wrong_attribute": 18, "wrong_relation": 6, "wrong_count": 6},
    ),
    (
        "model",
        "sample-captioner-small",
        {
            "complete": 8,
            "thin": 37,
            "wrong_attribute": 30,
            "wrong_relation": 10,
            "wrong_count": 10,
            "other_image": 5,
        },
    ),
)

TRUTH = pa.schema(
    [
        column("part", pa.string(), "landing | labels | evaluation"),
        column("shard", pa.string(), "shard, relative to its landing root"),
        column("key", pa.string(), "sample key"),
        column("caption_index", pa.int32(), "place among the sample's captions"),
        column("kind", pa.string(), "how the caption came about, or what is hostile about the sample"),
        column("good", pa.bool_(), "right, be it complete or thin"),
        *(column(name, pa.float32(), "true rating, 1 to 5", nullable=True) for name in CRITERIA),
        column("overall", pa.float32(), "weighted mean of the true ratings", nullable=True),
        column("caption", pa.string(), "the caption; null where the sample has none", nullable=True),
    ]
)


_Made = tuple[Sample, list[Caption]]


class Parts:
    """One sample being written: remembers the images made so far and the truth about each caption."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.seed = out, seed
        self.seen: set[str] = set()
        self.truth: list[dict[str, Any]] = []

    def landing(self, pairs: int, shard_pairs: int) -> int:
        """Write the crawl's shards below landing/; returns how many."""
        count = -(-pairs // shard_pairs)
        numbers: Counter[str] = Counter()
        for index in range(count):
            corpus = "sample-shop" if index % _SHOP_EVERY == _SHOP_EVERY - 1 else "sample"
            shard = f"{corpus}/{numbers[corpus]:05d}.tar"
            size = min(shard_pairs, pairs - index * shard_pairs)
            hostile = HOSTILE if index * shard_pairs % _HOSTILE_EVERY < shard_pairs else ()
            self._write("landing", shard, numbers[corpus], self._crawled(corpus, shard, size, hostile))
            numbers[corpus] += 1
            logger.info("sample crawl: shard %d of %d, %s", index + 1, count, shard)
        return count

    def _crawled(self, corpus: str, shard: str, size: int, hostile: Sequence[str]) -> list[_Made]:
        """Samples with `size` readable captions between them, among them what cannot be read."""
        rng = random.Random(f"{self.seed}/landing/{shard}")
        made: list[_Made] = []
        extra: list[_Made] = []
        readable = 0
        while readable < size:
            draw = rng.random()
            if draw < _REPEATED and made:
                again = rng.choice(made)
                if readable + len(again[1]) <= size:
                    made.append(again)
                    readable += len(again[1])
                continue
            scene, image = self._picture(rng)
            if draw > 1 - _EMPTY:
                blank = Caption(rng.choice(("", " ", "\n")), "empty", WORST)
                extra.append((Sample(image, blank.text), [blank]))
                continue
            count = 2 if rng.random() < _TWO_CAPTIONS and readable + 2 <= size else 1
            captions = [write_caption(scene, draw_kind(MIXTURES[corpus], rng), rng) for _ in range(count)]
            facts = {"captions": [caption.text for caption in captions]} if count > 1 else {}
            made.append((Sample(image, captions[0].text, facts), captions))
            readable += count
        for kind in hostile:
            scene, image = self._picture(rng)
            caption = write_caption(scene, "complete", rng)
            extra.append((hostile_sample(kind, image, caption.text), [replace(caption, kind=kind)]))
        for item in extra:
            made.insert(rng.randrange(len(made) + 1), item)
        return made

    def labels(self, count: int) -> tuple[int, int]:
        """Write judged images and what labelers say; returns judgements and the comparisons in them."""
        judgements = comparisons = 0
        path = self.out / "labels/judgements.jsonl"
        path.parent.mkdir(parents=True)
        with path.open("w", encoding="utf-8", newline="\n") as lines:
            for number, start in enumerate(range(0, count, JUDGED_PER_SHARD)):
                shard = f"judged/{number:05d}.tar"
                made = []
                for index in range(start, min(start + JUDGED_PER_SHARD, count)):
                    rng = random.Random(f"{self.seed}/labels/{index}")
                    sample, captions, line = self._judged(index, rng)
                    place = {
                        "shard": shard,
                        "key": _key(number, index - start),
                        "sha256": digest_bytes(sample.image),
                    }
                    lines.write(json.dumps({"image": place, **line}, ensure_ascii=False) + "\n")
                    judgements += len(line["judgements"])
                    comparisons += len(line["judgements"]) * len(captions) * (len(captions) - 1) // 2
                    made.append((sample, captions))
                self._write("labels", shard, number, made)
                logger.info("sample crawl: %d of %d judged images", start + len(made), count)
        return judgements, comparisons

    def _judged(self, index: int, rng: random.Random) -> tuple[Sample, list[Caption], dict[str, Any]]:
        """An image with five different captions in no telling order, and what labelers say of them."""
        scene, image = self._picture(rng)
        slots = rng.sample(_SLOTS, len(_SLOTS))
        captions: list[Caption] = []
        for _, _, mixture in slots:
            caption = write_caption(scene, draw_kind(mixture, rng), rng)
            while caption.text in {known.text for known in captions}:
                caption = write_caption(scene, draw_kind(mixture, rng), rng)
            captions.append(caption)
        ids = "abcde"
        described = [
            {"id": name, "text": caption.text, "source": source} | ({"model": captioner} if captioner else {})
            for name, caption, (source, captioner, _) in zip(ids, captions, slots, strict=True)
        ]
        labelers = LABELERS if index % _SHARED == 0 else [rng.choice(LABELERS)]
        qualities = {name: caption.quality for name, caption in zip(ids, captions, strict=True)}
        judgements = [judge(labeler, qualities, rng) for labeler in labelers]
        texts = [caption.text for caption in captions]
        sample = Sample(image, texts[0], {"captions": texts})
        return sample, captions, {"captions": described, "judgements": judgements}

    def evaluation(self, pairs: int, shard_pairs: int) -> int:
        """Write clean pairs below evaluation/; returns how many shards."""
        count = -(-pairs // shard_pairs)
        for number in range(count):
            shard = f"clean/{number:05d}.tar"
            rng = random.Random(f"{self.seed}/evaluation/{shard}")
            made: list[_Made] = []
            for _ in range(min(shard_pairs, pairs - number * shard_pairs)):
                scene, image = self._picture(rng)
                caption = write_caption(scene, "complete", rng)
                made.append((Sample(image, caption.text), [caption]))
            self._write("evaluation", shard, number, made)
        logger.info("sample crawl: %d clean pairs for the evaluation", pairs)
        return count

    def _picture(self, rng: random.Random) -> tuple[Scene, bytes]:
        """A scene and an image that no other scene of this sample has."""
        while True:
            scene = random_scene(rng)
            image = render(scene, rng)
            digest = digest_bytes(image)
            if digest not in self.seen:
                self.seen.add(digest)
                return scene, image

    def _write(self, part: str, shard: str, number: int, made: Sequence[_Made]) -> None:
        root = {"landing": "landing", "labels": "labels/shards", "evaluation": "evaluation"}[part]
        keyed = [(_key(number, index), sample) for index, (sample, _) in enumerate(made)]
        write_shard(self.out / root / shard, keyed)
        for (key, _), (sample, captions) in zip(keyed, made, strict=True):
            for index, caption in enumerate(captions):
                self.truth.append(
                    {
                        "part": part,
                        "shard": shard,
                        "key": key,
                        "caption_index": index,
                        "kind": caption.kind,
                        "good": caption.kind in GOOD_KINDS,
                        **{name: getattr(caption.quality, name) for name in CRITERIA},
                        "overall": caption.quality.overall,
                        "caption": caption.text if sample.caption is not None else None,
                    }
                )


def _key(shard: int, index: int) -> str:
    return f"{shard:05d}{index:04d}"
