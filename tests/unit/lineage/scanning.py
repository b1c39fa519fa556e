"""What a store and a landing folder hold of some texts and images, whatever file they are in."""

import base64
from pathlib import Path

import polars as pl


def traces(root: Path, needles: list[bytes]) -> list[str]:
    """Files below `root`, hidden ones too, that hold a needle: as bytes, as base64, or in a column of a table."""
    found = []
    for path in sorted(item for item in root.rglob("*") if item.is_file()):
        data = path.read_bytes()
        held = [data]
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
            held += [
                "\0".join(text for text in frame[name].to_list() if text).encode()
                for name, kind in frame.schema.items()
                if kind == pl.String
            ]
        wanted = [*needles, *(base64.b64encode(needle) for needle in needles)]
        if any(needle in text for needle in wanted for text in held):
            found.append(path.relative_to(root).as_posix())
    return found
