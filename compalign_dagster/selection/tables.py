"""The columns of a filtered dataset: what was kept, what was dropped and why."""

import pyarrow as pa

from compalign_dagster.parquet import column

_PAIR = column("pair_id", pa.string(), "image and caption by content")
_SHARD = column("shard", pa.string(), "shard, relative to the landing root")
_KEY = column("key", pa.string(), "sample inside the shard")
_CAPTION_INDEX = column("caption_index", pa.int32(), "place among the sample's captions as found")
_CORPUS = column("corpus", pa.string(), "where the shard belongs")
_REWARD = column("reward", pa.float32(), "alignment as the model sees it; larger is better")

KEPT = pa.schema(
    [
        _PAIR,
        _SHARD,
        _KEY,
        _CAPTION_INDEX,
        column("caption", pa.string(), "the caption as found"),
        column("image_offset", pa.int64(), "first byte of the image inside the shard"),
        column("image_length", pa.int64(), "bytes of the image"),
        _CORPUS,
        _REWARD,
    ]
)

DROPPED = pa.schema(
    [
        _PAIR,
        _SHARD,
        _KEY,
        _CAPTION_INDEX,
        _CORPUS,
        _REWARD,
        column("reason", pa.string(), "below_cut | tied_at_cut | no_budget"),
    ]
)

SELECTION = pa.schema([_PAIR, _SHARD, _KEY, _CAPTION_INDEX, _REWARD])
"""What `compalign keep` writes."""
