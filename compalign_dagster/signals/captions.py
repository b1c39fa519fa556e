"""Signals of a shard's captions, one row a pair, null where a signal is absent."""

from collections import Counter
from typing import Any

import pyarrow as pa

from compalign_dagster.parquet import column
from compalign_dagster.signals.language import Answer, identifier

CODE_VERSION = 1

SIGNALS = pa.schema(
    [
        column("pair_id", pa.string(), "image and caption by content"),
        column("shard", pa.string(), "shard name relative to the landing root"),
        column("key", pa.string(), "sample key"),
        column("caption_index", pa.int32(), "place among the sample's captions as found"),
        column("language", pa.string(), "ISO 639 code; null without letters or without the model", nullable=True),
        column("language_confidence", pa.float32(), "0 to 1; null where language is", nullable=True),
    ]
)
PLACE = ["pair_id", "shard", "key", "caption_index"]


def caption_signals(pairs: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """SIGNALS of PAIRS rows, in their order, and how many captions each language has.

    Captions without a language count as `none`; without the model, all of them as `absent`.
    """
    identify = identifier()
    answers: list[Answer]
    if identify is None:
        answers = [(None, None)] * pairs.num_rows
        counts = Counter({"absent": pairs.num_rows} if pairs.num_rows else {})
    else:
        answers = identify([str(caption) for caption in pairs["caption"].to_pylist()])
        counts = Counter(code or "none" for code, _ in answers)
    columns: list[Any] = [pairs[name] for name in PLACE]
    columns += [pa.array([code for code, _ in answers], pa.string())]
    columns += [pa.array([confidence for _, confidence in answers], pa.float32())]
    return pa.table(columns, schema=SIGNALS), counts
