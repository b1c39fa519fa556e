"""The columns of ranked lists and of a version of the filtered dataset."""

import pyarrow as pa

from compalign_dagster.parquet import column

_PAIR = column("pair_id", pa.string(), "image and caption by content")
_SHARD = column("shard", pa.string(), "shard, relative to the landing root")
_KEY = column("key", pa.string(), "sample inside the shard")
_CAPTION_INDEX = column("caption_index", pa.int32(), "place among the sample's captions as found")
_CORPUS = column("corpus", pa.string(), "where the shard belongs")
_BATCH = column("batch", pa.string(), "the batch that delivered the pair")
_REWARD = column("reward", pa.float32(), "alignment as the model sees it; larger is better")
_OFFSET = column("image_offset", pa.int64(), "first byte of the image inside the plain (unpacked) shard")
_LENGTH = column("image_length", pa.int64(), "bytes of the image")

RANKED = pa.schema(
    [
        _PAIR,
        _SHARD,
        _KEY,
        _CAPTION_INDEX,
        _CORPUS,
        column("reward", pa.float32(), "alignment as the model sees it; null where a cascade gave none", nullable=True),
        column("reason", pa.string(), "the rule that refuses the pair; null for a candidate", nullable=True),
        _OFFSET,
        _LENGTH,
        column("human_fit", pa.float32(), "probability that a person says the caption fits, 0 to 1", nullable=True),
        column("domain", pa.string(), "host of the pair's URL, lower case", nullable=True),
        column("caption_characters", pa.int32(), "Unicode code points of the caption"),
        column("width", pa.int32(), "pixels, after EXIF rotation"),
        column("height", pa.int32(), "pixels, after EXIF rotation"),
    ]
)
"""All pairs of a batch: by corpus, candidates before refused ones, best first."""

HISTOGRAM = pa.schema(
    [
        _CORPUS,
        column("bin", pa.uint32(), "the 20 leading bits of the reward in an order that numbers have"),
        column("pairs", pa.int64(), "candidates"),
        column("sum_reward", pa.float64(), "of their rewards"),
        column("sum_human_fit", pa.float64(), "of their human_fit, where there is one"),
        column("with_human_fit", pa.int64(), "candidates with a human_fit"),
    ]
)

GROUPS = pa.schema(
    [
        _CORPUS,
        column("dimension", pa.string(), "domain | caption_length | resolution"),
        column("group", pa.string(), "value of the dimension"),
        column("coarse", pa.uint32(), "the 12 leading bits of the reward, as in the histogram's bin"),
        column("pairs", pa.int64(), "candidates"),
    ]
)

IDS = pa.schema([_PAIR, column("row", pa.int64(), "position in ranked.parquet")])
"""Where a pair stands in a ranked list, sorted by pair."""

LISTS = pa.schema(
    [
        _BATCH,
        _CORPUS,
        column("budget", pa.string(), "the budget that the corpus draws on"),
        column("list_key", pa.string(), "manifest of the batch's ranked list in the store"),
        column("list_version", pa.string(), "data version of that list"),
        column("start", pa.int64(), "first row of the corpus in the list"),
        column("rows", pa.int64(), "rows of the corpus"),
        column("eligible", pa.int64(), "leading rows of those that no rule refuses"),
        column("taken", pa.int64(), "leading rows at or above the cut, capped ones among them"),
        column("kept", pa.int64(), "rows that are kept: taken, less the capped ones"),
    ]
)

CUTS = pa.schema(
    [
        column("budget", pa.string(), "name of a corpus, or * for all that have no budget of their own"),
        column(
            "fraction", pa.string(), "keep fraction as a decimal; null where the policy gives a count", nullable=True
        ),
        column("n", pa.int64(), "pairs of the budget, whatever the rules say of them"),
        column("k", pa.int64(), "pairs that the policy asks to keep"),
        column("kept", pa.int64(), "pairs that are kept"),
        column("short", pa.bool_(), "fewer candidates than k"),
        column("cut", pa.float32(), "reward of the last kept pair", nullable=True),
        *(
            column(f"last_{name}", dtype, "of the last kept pair, for the tie-break", nullable=True)
            for name, dtype in (
                ("pair_id", pa.string()),
                ("shard", pa.string()),
                ("key", pa.string()),
                ("caption_index", pa.int32()),
            )
        ),
        column("first_dropped", pa.float32(), "highest reward of a candidate that was dropped", nullable=True),
        column("tied_at_cut", pa.int64(), "dropped candidates with the reward of the last kept pair"),
    ]
)

CAPPED = pa.schema(
    [
        _BATCH,
        column("row", pa.int64(), "position in that batch's ranked list"),
        _PAIR,
        _SHARD,
        _KEY,
        _CAPTION_INDEX,
        _CORPUS,
        _REWARD,
        column(
            "reason", pa.string(), "duplicate_cap | domain_cap"
        ),  # or cluster_cap; the words are in every file's bytes
    ]
)

BLOCKED = pa.schema([_SHARD, _KEY, _CAPTION_INDEX, column("reason", pa.string(), "takedown | evaluation_overlap")])
"""Occurrences that a block list names."""

SHARDS_USED = pa.schema(
    [
        _SHARD,
        _BATCH,
        column("index_version", pa.string(), "data version of the index"),
        column("data_version", pa.string(), "data version of the scores"),
        column("model_version", pa.string(), "digest of the model folder"),
    ]
)
"""What a version was made of, by content: store keys tell when a shard landed, and would make other bytes of it."""

SHARD_KEYS = pa.schema(
    [
        *SHARDS_USED,
        column("pairs_key", pa.string(), "store key of the shard's pair index"),
        column("scores_key", pa.string(), "store key of the shard's scores"),
        column("rejected_key", pa.string(), "store key of the pairs that a cascade turned down", nullable=True),
    ]
)
"""SHARDS_USED, and where that lies in the store: `Version.shard_keys`."""

KEPT = pa.schema(
    [
        _PAIR,
        _SHARD,
        _KEY,
        _CAPTION_INDEX,
        column("caption", pa.string(), "the caption as found"),
        _OFFSET,
        _LENGTH,
        _CORPUS,
        _REWARD,
    ]
)
"""A kept pair with all that a trainer needs, in reading order (by place in the shard)."""

DROPPED = pa.schema(
    [
        _PAIR,
        _SHARD,
        _KEY,
        _CAPTION_INDEX,
        _CORPUS,
        column("reward", pa.float32(), "alignment as the model sees it; null where a cascade gave none", nullable=True),
        column("reason", pa.string(), "why it was not kept: `reasons.MEANING`"),
    ]
)

SELECTION = pa.schema([_PAIR, _SHARD, _KEY, _CAPTION_INDEX, _REWARD])
"""What `compalign keep` writes."""
