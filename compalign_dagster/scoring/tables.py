"""The columns of scores and of the ledger that folds them."""

import pyarrow as pa

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.parquet import column

CODE_VERSION = 4  # of scoring: raise it when the same model and pairs give other rows

SCORES = pa.schema(
    [
        column("pair_id", pa.string(), "image and caption by content"),
        column("shard", pa.string(), "shard, relative to the landing root"),
        column("key", pa.string(), "sample inside the shard"),
        column("caption_index", pa.int32(), "place among the sample's captions as found"),
        column("caption", pa.string(), "the caption that was scored"),
        column("reward", pa.float32(), "alignment as the model sees it; larger is better; always finite"),
        column("model_version", pa.string(), "digest of the model folder"),
        column("cosine", pa.float32(), "image-text cosine of the joint space", nullable=True),
        column("itm", pa.float32(), "probability that image and caption match", nullable=True),
        column("label_free", pa.float32(), "the backbone's best score without any human label", nullable=True),
        column("human_fit", pa.float32(), "probability that a person says the caption fits, 0 to 1", nullable=True),
        column("reward_std", pa.float32(), "how unsure the reward is: its standard deviation", nullable=True),
        *(
            column(name, pa.float32(), f"the model's score of {name}; larger is better", nullable=True)
            for name in CRITERIA
        ),
        column("corpus", pa.string(), "where the shard belongs"),
    ]
)

_PLACE = tuple(SCORES.field(name) for name in ("pair_id", "shard", "key", "caption_index", "corpus"))
_CHEAP = column("cheap", pa.float32(), "reward of the cascade's cheap model")

REJECTED = pa.schema([*_PLACE, _CHEAP])
"""Pairs of a shard that a cascade turned down: they have no reward."""

AUDITED = pa.schema([*_PLACE, _CHEAP, SCORES.field("reward")])
"""Pairs that a cascade turned down and that were scored all the same, to see whether it was right."""

FIGURES = ("reward", "cosine", "itm", "label_free", "human_fit", "reward_std", *CRITERIA)  # what a model says of a pair

LEDGER = pa.schema(
    [
        column("shard", pa.string(), "a live, scored shard"),
        column("batch", pa.string(), "the batch that delivered what was scored"),
        column("model_version", pa.string(), "digest of the model folder"),
        column("scores_key", pa.string(), "store key of the shard's scores"),
        column("work_key", pa.string(), "work key of the artifact that holds them"),
        column("data_version", pa.string(), "data version of that artifact"),
        column("pairs_key", pa.string(), "store key of the pair index that was scored"),
        column("index_version", pa.string(), "data version of that index"),
        column("pairs", pa.int64(), "pairs read from the shard: scored + rejected + quarantined"),
        column("scored", pa.int64(), "pairs with a reward"),
        column("quarantined", pa.int64(), "pairs that could not be scored"),
        column("rejected", pa.int64(), "pairs that a cascade turned down"),
        column("rejected_key", pa.string(), "store key of those pairs, where a cascade was used", nullable=True),
    ]
)
