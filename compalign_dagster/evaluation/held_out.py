"""Everything that is asked of a model about held-out images, scored once into one table.

What belongs here: which captions and pictures a model is tried on, and its scores. What does not: what the
scores say (`evidence.py`, `shortcuts.py`). An image is encoded once for all of its captions.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.crawl.shards import MemberReader
from compalign_dagster.evaluation.text_only import TextOnly, fit_text_only
from compalign_dagster.images import decode
from compalign_dagster.reward.data import JudgedImage, TrainingData, judged_images
from compalign_dagster.reward.loading import loader_for
from compalign_dagster.reward.metrics import (
    MISMATCHES,
    SCORES,
    Known,
    columns_of,
    held_out_rows,
    known_scores,
    people_accept,
    score_rows,
)
from compalign_dagster.reward.model import RewardModel
from compalign_dagster.reward.nearmiss import Substitutes

SCORERS = (*SCORES, "caption_length", "text_only")
OWN, MATCHED, MISMATCHED, SHUFFLED, NEAR_MISS, ON_BLANK, ON_PHOTO = (
    "own", "matched", "mismatched", "shuffled", "near_miss", "on_blank", "on_photo",
)  # fmt: skip
_CACHE_MIB = 256
PROBES = 200  # images whose caption is written into a picture
_BATCH_PROBES = 16
_SIDE = 384  # px of a blank picture


@dataclass(frozen=True)
class Row:
    """One caption tried on one image. `answers` is the text of the image's right caption it must lose to."""

    image: int  # place in HeldOut.images
    text: str
    kind: str
    caption_id: str = ""  # of a judged caption
    right: bool = False  # people say it fits, or it was written for the image
    answers: str = ""


@dataclass(frozen=True)
class HeldOut:
    """Rows and their scores, float64 [N] by name: SCORERS and CRITERIA; NaN for what the model lacks."""

    images: tuple[str, ...]
    rows: tuple[Row, ...]
    scores: Mapping[str, np.ndarray]
    undecodable: int = 0  # images left out
    over_long: int = 0  # judged captions of which the model read only the beginning

    @property
    def image(self) -> np.ndarray:
        """The image of each row, int64 [N]."""
        return np.array([row.image for row in self.rows], np.int64)

    def where(self, test: Callable[[Row], bool]) -> np.ndarray:
        """The rows that pass, int64 [M]."""
        return np.flatnonzero([test(row) for row in self.rows])

    def kind(self, kind: str) -> np.ndarray:
        """The rows of a kind, int64 [M]."""
        return self.where(lambda row: row.kind == kind)

    def right(self) -> np.ndarray:
        """Captions that fit their image: those written for it where given, else those people accept."""
        matched = self.kind(MATCHED)
        return matched if len(matched) else self.where(lambda row: row.right)

    def judged(self) -> dict[tuple[str, str], int]:
        """The row of every judged caption, by (image_id, caption_id)."""
        return {(self.images[row.image], row.caption_id): at for at, row in enumerate(self.rows) if row.kind == OWN}

    def only(self, images: Collection[str]) -> "HeldOut":
        """The rows of these images."""
        kept = [image for image in self.images if image in images]
        place = {image: at for at, image in enumerate(kept)}
        part = self.of_rows(self.where(lambda row: self.images[row.image] in place))
        rows = tuple(replace(row, image=place[self.images[row.image]]) for row in part.rows)
        return replace(part, images=tuple(kept), rows=rows)

    def of_rows(self, rows: np.ndarray) -> "HeldOut":
        """These rows (int64 [M]) of the same images."""
        scores = {name: values[rows] for name, values in self.scores.items()}
        return replace(self, rows=tuple(self.rows[at] for at in rows), scores=scores)

    def with_scores(self, scores: Mapping[str, np.ndarray]) -> Self:
        """The same rows with these scores added or replaced."""
        return replace(self, scores={**self.scores, **scores})


def joined(parts: Sequence[HeldOut]) -> HeldOut:
    """Tables of different images as one, such as those of the folds of a cross-validation."""
    images: list[str] = []
    rows: list[Row] = []
    for part in parts:
        rows += [replace(row, image=row.image + len(images)) for row in part.rows]
        images += part.images
    names = [name for name in parts[0].scores if all(name in part.scores for part in parts)]
    return HeldOut(
        tuple(images),
        tuple(rows),
        {name: np.concatenate([part.scores[name] for part in parts]) for name in names},
        sum(part.undecodable for part in parts),
        sum(part.over_long for part in parts),
    )


def score_held_out(
    model: RewardModel,
    data: TrainingData,
    *,
    split: str = "test",
    seed: int,
    before: Known | None = None,
    matched: Mapping[str, Sequence[str]] | None = None,
    control: TextOnly | None = None,
    substitutes: Substitutes | None = None,
    probes: int = PROBES,
) -> HeldOut:
    """Score the judged images of `split` with their captions, mismatched and shuffled ones, and pictures of text.

    `before` are the baselines as they were before human labels moved the network (`baseline_scores`).
    `matched` are captions written for an image, by image_id, where judgements are only of others. `control` is
    the text-only model; without it one is fitted on the training split of `data`. `substitutes` make near misses;
    without them they are learned from the crawl's captions. Of at most `probes` images the
    right caption is also written into a blank and into another photo. Images that do not decode are left out and
    counted.
    """
    loader = loader_for(model, data.shards, _CACHE_MIB)
    found = judged_images(data, split)
    usable = loader.usable(image.place for image in found)
    images = [image for image in found if image.place in usable]
    rows = _rows(images, substitutes or crawl_words(data), matched or {}, seed)
    scores = score_rows(model, loader, images, np.array([row.image for row in rows], np.int64), [r.text for r in rows])
    written, probed = _probes(model, data, images, rows, probes)
    rows += probed
    scores = {name: np.concatenate([values, written[name]]) for name, values in scores.items()}
    if before is not None:
        known = known_scores(before, [images[row.image].image_id for row in rows], [row.text for row in rows])
        same = model.images_are_frozen  # what was not scored before is then still what it was
        scores |= {name: np.where(np.isnan(old) & same, scores[name], old) for name, old in known.items()}
    texts = [row.text for row in rows]
    scores["caption_length"] = np.array([len(text) for text in texts], np.float64)
    control = control or text_control(data)
    scores["text_only"] = control(texts) if control else np.full(len(texts), np.nan)
    counts = model.token_counts([row.text for row in rows if row.kind == OWN])
    return HeldOut(
        tuple(image.image_id for image in images),
        tuple(rows),
        scores,
        undecodable=len(found) - len(images),
        over_long=sum(count > model.config.max_caption_tokens for count in counts),
    )


def crawl_words(data: TrainingData) -> Substitutes:
    """What makes near misses of captions: words that the crawl's captions put in the same place."""
    return Substitutes(str(text) for text in data.crawl["caption"].to_pylist())


def text_control(data: TrainingData) -> TextOnly | None:
    """The control that learned from the training split what the model learned from."""
    rows = data.images.select(["image_id", "split"]).to_pylist()
    learned = [row["image_id"] for row in rows if row["split"] == "train"]
    return fit_text_only(data.captions, data.ranks, data.comparisons, learned)


def _rows(
    images: Sequence[JudgedImage], substitutes: Substitutes, matched: Mapping[str, Sequence[str]], seed: int
) -> list[Row]:
    """Rows sorted by image: judged captions, matched ones, other images' captions, two spoiled ones.

    Near misses are made from what the crawl's captions say, and are alike for every model.
    """
    others = _mismatched(images, matched)
    rows: list[Row] = []
    for at, image in enumerate(images):
        own = [
            Row(at, text, OWN, image.caption_ids[place], right=place in image.top and people_accept(image, place))
            for place, text in enumerate(image.captions)
        ]
        given = [Row(at, text, MATCHED, right=True) for text in matched.get(image.image_id, ())]
        rows += [*own, *given]
        rights = sorted({row.text for row in (given or own) if row.right}, key=lambda text: (len(text), text))
        plain = rights[0] if rights else ""
        rows += [Row(at, text, MISMATCHED, answers=plain) for text in others[at]]
        for text in rights[:1]:
            shuffled = _shuffled(text, random.Random(f"{seed}:{image.image_id}"))
            miss = substitutes.near_miss(text, np.random.default_rng([seed, *image.image_id.encode()]))
            spoiled = {SHUFFLED: shuffled, NEAR_MISS: miss}
            rows += [Row(at, wrong, kind, answers=text) for kind, wrong in spoiled.items() if wrong]
    return rows


def _mismatched(images: Sequence[JudgedImage], matched: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """For each image captions of its neighbours that are not its own."""
    found: list[list[str]] = []
    if not matched:
        layout = held_out_rows(list(images))
        for at in range(len(images)):
            mine = np.flatnonzero((layout.image == at) & ~layout.own)
            found.append([layout.text[row] for row in mine])
        return found
    for at, image in enumerate(images):
        others = [images[(at + step) % len(images)] for step in range(1, min(MISMATCHES, len(images) - 1) + 1)]
        own = {*image.captions, *matched.get(image.image_id, ())}
        theirs = [matched[other.image_id][0] for other in others if matched.get(other.image_id)]
        found.append([text for text in theirs if text not in own])
    return found


def _shuffled(text: str, rng: random.Random) -> str:
    """The caption with its words in another order; empty where there is no other."""
    words = text.split()
    if len(set(words)) < 3:
        return ""
    while True:
        mixed = rng.sample(words, len(words))
        if mixed != words:
            return " ".join(mixed)


def _probes(
    model: RewardModel, data: TrainingData, images: Sequence[JudgedImage], rows: Sequence[Row], most: int
) -> tuple[dict[str, np.ndarray], list[Row]]:
    """Pictures with an image's right caption written into them, scored with that caption."""
    answers: dict[int, str] = {}
    for row in rows:
        if row.answers:
            answers.setdefault(row.image, row.answers)
    chosen = sorted(answers)[:most]
    scores: list[dict[str, np.ndarray]] = []
    found: list[Row] = []
    with MemberReader() as members, torch.inference_mode():
        for start in range(0, len(chosen), _BATCH_PROBES):
            group = chosen[start : start + _BATCH_PROBES]
            pictures: list[Image.Image] = []
            for at in group:
                shard, offset, length = images[(at + 1) % len(images)].place
                photo = decode(members.read(data.shards[shard], offset, length))
                pictures += [written(answers[at]), written(answers[at], photo)]
                found += [Row(at, answers[at], kind, answers=answers[at]) for kind in (ON_BLANK, ON_PHOTO)]
            states = model.encode_images(torch.stack([model.prepare(item) for item in pictures]).to(model.device))
            texts = [answers[at] for at in group for _ in range(2)]
            scores.append(columns_of(model(states, texts, torch.arange(len(texts)))))
    names = (*SCORES, *CRITERIA)
    return {name: np.concatenate([part[name] for part in scores] or [np.zeros(0)]) for name in names}, found


def written(text: str, photo: Image.Image | None = None) -> Image.Image:
    """A picture that says `text` in black on white: on a blank page, or on a banner over a photo."""
    picture = Image.new("RGB", (_SIDE, _SIDE), "white") if photo is None else photo.copy()
    draw = ImageDraw.Draw(picture)
    size = max(8, picture.width // 14)
    font = ImageFont.load_default(size)
    lines, line = [], ""
    for word in text.split()[:40]:
        longer = f"{line} {word}".strip()
        if line and draw.textlength(longer, font) > 0.92 * picture.width:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    height = 1.3 * size * len(lines)
    top = max(0.0, (picture.height - height) / 2)
    draw.rectangle((0, top - size / 4, picture.width, top + height + size / 4), fill="white")
    for at, said in enumerate(lines):
        draw.text((0.04 * picture.width, top + 1.3 * size * at), said, fill="black", font=font)
    return picture
