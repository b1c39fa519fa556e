"""Evaluation images that something was trained on, found by content.

What belongs here: exact overlap by the image's SHA-256. What does not: near duplicates.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Leakage:
    """Evaluation pairs without the leaked images, and the leaked images (sha256) by where they also are."""

    clean: pa.Table
    leaked: Mapping[str, list[str]]

    def counts(self) -> dict[str, int]:
        """Leaked images by where they also are."""
        return {name: len(images) for name, images in self.leaked.items()}


def remove_leaked(evaluation: pa.Table, others: Mapping[str, Iterable[str]]) -> Leakage:
    """Take images out of an evaluation set that are also among `others` (name -> image sha256).

    `evaluation` has a column `image_sha256`. Every name of `others` is in the result, with an empty list
    where nothing leaked.
    """
    own: set[str] = set(evaluation.column("image_sha256").to_pylist())  # type: ignore[arg-type]
    leaked = {name: sorted(own.intersection(images)) for name, images in others.items()}
    found = pa.array(sorted({image for images in leaked.values() for image in images}), pa.string())
    return Leakage(evaluation.filter(pc.invert(pc.is_in(evaluation["image_sha256"], found))), leaked)
