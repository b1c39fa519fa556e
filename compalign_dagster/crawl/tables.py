"""Columns of the crawl: pairs, quarantine, shards.

`quarantine` has one row for each thing refused; `crawl.reasons` says what the reasons mean.
"""

import pyarrow as pa

from compalign_dagster.parquet import column

PAIRS = pa.schema(
    [
        column("pair_id", pa.string(), "32 hex digits of SHA-256(raw image digest, caption bytes as found)"),
        column("shard", pa.string(), "shard name relative to the landing root"),
        column("key", pa.string(), "sample key: member path up to the first dot of its last part"),
        column("caption_index", pa.int32(), "position among the sample's captions, never renumbered"),
        column("caption", pa.string(), "the caption as found"),
        column("image_offset", pa.int64(), "where the image's bytes start in the plain (unpacked) tar, bytes"),
        column("image_length", pa.int64(), "how many bytes the image has"),
        column("width", pa.int32(), "pixels, after EXIF rotation"),
        column("height", pa.int32(), "pixels, after EXIF rotation"),
        column("image_sha256", pa.string(), "SHA-256 of the image's bytes, hex"),
        column("image_format", pa.string(), "format that the bytes are in, whatever the name says"),
        column(
            "image_phash", pa.string(), "perceptual hash, 64 bits in hex: few differ between images that look alike"
        ),
        column("caption_characters", pa.int32(), "Unicode code points of the caption"),
        column("caption_words", pa.int32(), "runs of anything but white space"),
        column("caption_repetition", pa.float32(), "share of words that came before in the same caption, 0 to 1"),
        column("caption_non_letters", pa.float32(), "share of visible characters that are no letters, 0 to 1"),
        column("corpus", pa.string(), "where the shard belongs: its first folder"),
        column("url", pa.string(), "`url` of the sample's .json", nullable=True),
    ]
)

QUARANTINE = pa.schema(
    [
        column("shard", pa.string(), "shard name relative to the landing root"),
        column("key", pa.string(), "sample key, where there is one", nullable=True),
        column("member", pa.string(), "member name, undecodable bytes escaped", nullable=True),
        column("unit", pa.string(), "what was refused: shard, member or caption"),
        column("caption_index", pa.int32(), "which of the sample's captions", nullable=True),
        column("offset", pa.int64(), "where in the plain (unpacked) tar, bytes", nullable=True),
        column("reason", pa.string(), "reason code"),
        column("detail", pa.string(), "what was expected and what was found"),
    ]
)

SHARDS = pa.schema(
    [
        column("shard", pa.string(), "shard name relative to the landing root"),
        column("corpus", pa.string(), "where the shard belongs: its first folder"),
        column("status", pa.string(), "ok: read whole; partial: damaged or cut; unreadable: nothing found"),
        column("bytes", pa.int64(), "size of the shard as it lies there"),
        column("sha256", pa.string(), "SHA-256 of the shard's bytes, hex"),
        column("members", pa.int64(), "members met; a damaged stretch counts as one"),
        column("used", pa.int64(), "members read as image or captions"),
        column("quarantined_members", pa.int64(), "members refused, with a reason"),
        column("ignored", pa.int64(), "members that are not ours to read"),
        column("captions", pa.int64(), "captions found"),
        column("pairs", pa.int64(), "captions that became pairs"),
        column("quarantined_captions", pa.int64(), "captions refused, with a reason"),
        column("disagreements", pa.int64(), "samples whose .txt and .json captions differ"),
    ]
)

BATCH_SHARDS = pa.schema(
    [
        *SHARDS,
        column("pairs_key", pa.string(), "store key of the shard's pairs"),
        column("quarantine_key", pa.string(), "store key of the shard's quarantine"),
        column("index_version", pa.string(), "data version of the shard's index"),
    ]
)
