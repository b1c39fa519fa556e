"""Judgements of context and of photos from COCO, turned into lines of the annotation contract.

What belongs here: one function per foreign layout. What does not: Flickr8k (`importers.py`), what importers
share (`foreign.py`).

- context (Kreiss et al. 2022): people without the article's picture, then with it, answered 1 to 5 about
  one description of an image placed in an article. Completeness = relevance after the image ("does it say
  what matters here"), vividness = reconstructivity ("can you picture it", asked only before the image),
  context = fit of the image to the article after the image. Whether the description is *right* was not
  asked: accuracy stays empty. Each person saw one description of an image, so nobody ranked: the people are
  labelers of ratings alone, and one more labeler, the pooled people, ranks by the mean overall answer after
  the image. A description written for another article is another caption. The article itself is not part of
  a caption, so that a model cannot know it.
- thumb (THumB 1.0): 1 to 5. Accuracy = precision, completeness = recall; the ranking goes by the
  published human score, which takes off for bad language.
- cxc (Crisscrossed Captions, image-text): mean similarity 0 to 5; accuracy = 1 + 4 * similarity / 5.
- vsr (Visual Spatial Reasoning): a sentence is true or false of the image; accuracy 5 or 1.
- sugarcrepe: a caption and one made wrong from it by a language model; each such pair is a labeler who
  ranks the two and rates nothing.
"""

from collections.abc import Iterator

import pyarrow as pa

from compalign_dagster.annotation.foreign import (
    ImageAnswers,
    Line,
    answer,
    caption_by,
    checked_rows,
    lines_of,
    within,
)
from compalign_dagster.versions import digest_json


def context_evaluation(table: pa.Table, *, shard: str) -> Iterator[Line]:
    """Lines from the sighted answers of `wiki_context`: `img_id, context, description, rater, q_*` (1 to 5).

    Raises `InputError` for a missing column or an answer outside its scale.
    """
    questions = {
        "completeness": "q_relevance.postimg",
        "vividness": "q_reconstructivity.preimg",
        "context": "q_imgfit.postimg",
    }
    overall = "q_overall.postimg"
    images: dict[str, ImageAnswers] = {}
    pooled: dict[str, dict[str, list[float]]] = {}
    columns = ("img_id", "context", "description", "rater", overall, *questions.values())
    for row in checked_rows(table, "context evaluation", *columns):
        image = images.setdefault(row["img_id"], ImageAnswers())
        caption_id = f"{row['context']}#{digest_json(row['description'])[:8]}"
        image.captions[caption_id] = {"id": caption_id, "text": row["description"], "source": "human"}
        given = {name: within(row[column], 1, 5, f"{column} of {caption_id}") for name, column in questions.items()}
        image.answers.setdefault(f"context-{row['rater']}", {})[caption_id] = given
        worth = within(row[overall], 1, 5, f"{overall} of {caption_id}")
        pooled.setdefault(row["img_id"], {}).setdefault(caption_id, []).append(worth)
    for image_id, answers in pooled.items():
        means = {caption_id: round(sum(values) / len(values), 4) for caption_id, values in answers.items()}
        images[image_id].worth["context-people"] = means
    yield from lines_of(images, shard, guideline="context-evaluation")


def thumb(table: pa.Table, *, shard: str) -> Iterator[Line]:
    """Lines from `image_id, system, caption, precision, recall` (1 to 5), `human_score`.

    Raises as `context_evaluation`.
    """
    images: dict[str, ImageAnswers] = {}
    for row in checked_rows(table, "THumB", "image_id", "system", "caption", "precision", "recall", "human_score"):
        caption_id = f"thumb-{row['system']}"
        image = images.setdefault(row["image_id"], ImageAnswers())
        image.captions[caption_id] = caption_by(caption_id, row["caption"], row["system"])
        given = {
            "accuracy": within(row["precision"], 1, 5, f"precision of {caption_id}"),
            "completeness": within(row["recall"], 1, 5, f"recall of {caption_id}"),
        }
        image.answers.setdefault("thumb", {})[caption_id] = given
        image.worth.setdefault("thumb", {})[caption_id] = within(
            row["human_score"], -5, 5, f"human_score of {caption_id}"
        )
    yield from lines_of(images, shard, guideline="thumb")


def crisscrossed(table: pa.Table, *, shard: str) -> Iterator[Line]:
    """Lines from `image_id, caption_ann_id, caption, rating` (0 to 5). Raises as `context_evaluation`."""
    images: dict[str, ImageAnswers] = {}
    for row in checked_rows(table, "CxC", "image_id", "caption_ann_id", "caption", "rating"):
        image = images.setdefault(row["image_id"], ImageAnswers())
        caption_id = f"coco-{row['caption_ann_id']}"
        image.captions[caption_id] = {"id": caption_id, "text": row["caption"], "source": "human"}
        answer(image, "cxc", caption_id, 1 + 4 * within(row["rating"], 0, 5, f"rating of {caption_id}") / 5)
    yield from lines_of(images, shard, guideline="cxc")


def spatial_reasoning(table: pa.Table, *, shard: str) -> Iterator[Line]:
    """Lines from `image_id, caption, label` (1 true, 0 false). Raises as `context_evaluation`."""
    images: dict[str, ImageAnswers] = {}
    for row in checked_rows(table, "VSR", "image_id", "caption", "label"):
        image = images.setdefault(row["image_id"], ImageAnswers())
        caption_id = f"vsr-{digest_json(row['caption'])[:8]}"
        image.captions[caption_id] = {"id": caption_id, "text": row["caption"], "source": "human"}
        answer(image, "vsr", caption_id, 1 + 4 * within(row["label"], 0, 1, f"label of {caption_id}"))
    yield from lines_of(images, shard, guideline="vsr")


def sugarcrepe(table: pa.Table, *, shard: str) -> Iterator[Line]:
    """Lines from `image_id, kind, caption, hard_negative`: the caption over the negative, one labeler a pair.

    Raises `InputError` for a missing column.
    """
    images: dict[str, ImageAnswers] = {}
    for row in checked_rows(table, "SugarCrepe", "image_id", "kind", "caption", "hard_negative"):
        image = images.setdefault(row["image_id"], ImageAnswers())
        labeler = f"sugarcrepe-{row['kind']}-{digest_json([row['caption'], row['hard_negative']])[:8]}"
        right, wrong = f"{labeler}-right", f"{labeler}-wrong"
        image.captions[right] = {"id": right, "text": row["caption"].strip(), "source": "human"}
        image.captions[wrong] = caption_by(wrong, row["hard_negative"].strip(), f"sugarcrepe-{row['kind']}")
        image.worth[labeler] = {right: 1.0, wrong: 0.0}
    yield from lines_of(images, shard, guideline="sugarcrepe")
