"""The columns of human judgements, and what each means.

What belongs here: schemas. What does not: how the tables come about (`assemble.py`).
"""

import pyarrow as pa

from compalign_dagster.parquet import column

CRITERIA = ("accuracy", "completeness", "vividness", "context")
SPLITS = ("train", "validation", "test")
SOURCES = ("human", "crawled", "model")

IMAGES = pa.schema(
    [
        column("image_id", pa.string(), "SHA-256 of the image's bytes, hex"),
        column("shard", pa.string(), "shard of judged images, relative to its root"),
        column("key", pa.string(), "sample key in the shard"),
        column("image_offset", pa.int64(), "where the image's bytes begin in the shard"),
        column("image_length", pa.int64(), "how many bytes the image has"),
        column("split", pa.string(), "train, validation or test; a function of image_id and the seed"),
    ]
)

CAPTIONS = pa.schema(
    [
        column("image_id", pa.string(), "the judged image"),
        column("caption_id", pa.string(), "the caption's name among the image's captions"),
        column("caption", pa.string(), "the caption's text"),
        column("caption_source", pa.string(), "human, crawled or model"),
        column("captioner", pa.string(), "which model wrote it", nullable=True),
    ]
)

RANKS = pa.schema(
    [
        column("image_id", pa.string(), "the judged image"),
        column("labeler", pa.string(), "who judged"),
        column("caption_id", pa.string(), "which caption"),
        column("rank", pa.int32(), "place in the labeler's ranking, 1 is best; equal is a tie", nullable=True),
        column("accuracy", pa.float32(), "is what it says right? 1 to 5", nullable=True),
        column("completeness", pa.float32(), "does it say what matters? 1 to 5", nullable=True),
        column("vividness", pa.float32(), "does it say so in specific words? 1 to 5", nullable=True),
        column("context", pa.float32(), "does it fit where the image is used? 1 to 5", nullable=True),
        column("seconds", pa.float32(), "time spent on the image", nullable=True),
        column("guideline", pa.string(), "version of the labeler's instructions", nullable=True),
    ]
)

COMPARISONS = pa.schema(
    [
        column("image_id", pa.string(), "the judged image"),
        column("labeler", pa.string(), "who judged"),
        column("better", pa.string(), "caption_id of the preferred caption; of a tie, the first by id"),
        column("worse", pa.string(), "caption_id of the other caption"),
        column("tie", pa.bool_(), "true when the labeler ranked both equal"),
    ]
)

REJECTED = pa.schema(
    [
        column("file", pa.string(), "the export, relative to the folder that holds all of them"),
        column("line", pa.int64(), "line of a JSONL or row of a Parquet file, counted from 1"),
        column("reason", pa.string(), "why the line was refused"),
        column("detail", pa.string(), "where in the line, and what was found"),
    ]
)
