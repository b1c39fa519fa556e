"""Small score and index tables."""

import hashlib
from pathlib import Path

import polars as pl

from compalign_dagster import parquet
from compalign_dagster.scoring.tables import SCORES


def occurrence(at: int, reward: float, *, corpus: str = "sample", image: int | None = None) -> dict:
    image = at if image is None else image
    digest = hashlib.sha256(str(image).encode()).hexdigest()
    return {
        "pair_id": hashlib.sha256(f"{digest} caption {at}".encode()).hexdigest()[:32],
        "shard": f"{corpus}/{image // 5:05d}.tar",
        "key": f"{image:05d}",
        "caption_index": 0 if image == at else at,
        "caption": f"caption {at}",
        "reward": reward,
        "model_version": "m" * 64,
        "cosine": None,
        "itm": None,
        "corpus": corpus,
        "image_offset": 512 + 1024 * (image % 5),
        "image_length": 100 + image,
    }


def write_scores(path: Path, rows: list[dict]) -> Path:
    return parquet.write(parquet.from_rows(rows, SCORES), path)


def write_pairs(path: Path, rows: list[dict]) -> Path:
    columns = [
        "pair_id",
        "shard",
        "key",
        "caption_index",
        "caption",
        "image_offset",
        "image_length",
        "corpus",
    ]
    schema = {
        name: {"caption_index": pl.Int32, "image_offset": pl.Int64, "image_length": pl.Int64}.get(name, pl.String)
        for name in columns
    }
    pl.DataFrame([{name: row[name] for name in columns} for row in rows], schema=schema).write_parquet(path)
    return path


def frame(rows: list[dict]) -> pl.DataFrame:
    columns = ["pair_id", "shard", "key", "caption_index", "corpus", "reward", "model_version"]
    schema = {name: {"caption_index": pl.Int32, "reward": pl.Float64}.get(name, pl.String) for name in columns}
    return pl.DataFrame([{name: row[name] for name in columns} for row in rows], schema=schema)
