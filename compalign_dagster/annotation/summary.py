"""What a person asks of a set of judgements: how many, of what, and how far labelers agree.

What belongs here: counts, means and agreement, computed from the tables alone. What does not: the
tables (`assemble.py`) and how this is shown.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster.annotation.assemble import Annotations
from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.statistics import bootstrap_mean

_SEED = 7  # of the bootstrap; the same tables give the same intervals


def summarize(annotations: Annotations) -> dict[str, Any]:
    """Counts, means per caption source and agreement, as JSON values."""
    ranks, comparisons = annotations.ranks, annotations.comparisons
    splits = dict(_columns(annotations.images, "image_id", "split"))
    judgements = set(_columns(ranks, "image_id", "labeler"))
    return {
        "lines": annotations.lines,
        "lines_used": annotations.used,
        "lines_rejected": annotations.rejected.num_rows,
        "images": annotations.images.num_rows,
        "captions": annotations.captions.num_rows,
        "labelers": len({labeler for _, labeler in judgements}),
        "judgements": len(judgements),
        "comparisons": comparisons.num_rows,
        "ties": pc.sum(comparisons["tie"]).as_py() or 0,
        "images_by_split": _counts(splits.values()),
        "comparisons_by_split": _counts(splits[image] for image in comparisons["image_id"].to_pylist()),
        "captions_by_source": _counts(annotations.captions["caption_source"].to_pylist()),
        "judgements_by_labeler": _counts(labeler for _, labeler in judgements),
        "rejected_by_reason": _counts(annotations.rejected["reason"].to_pylist()),
        "mean_rank_of_source": mean_rank_of_source(annotations),
        "mean_rating_of_labeler": mean_rating_of_labeler(ranks),
        "agreement": agreement(comparisons),
    }


def mean_rank_of_source(annotations: Annotations) -> dict[str, float]:
    """Mean rank (1 is best) of the captions of each source, over all ranked captions and labelers."""
    captions = annotations.captions.select(["image_id", "caption_id", "caption_source"])
    ranked = annotations.ranks.filter(pc.is_valid(annotations.ranks["rank"]))
    joined = ranked.join(captions, ["image_id", "caption_id"], use_threads=False)
    means = pa.TableGroupBy(joined, "caption_source", use_threads=False).aggregate([("rank", "mean")])
    return {source: round(mean, 3) for source, mean in sorted(_columns(means, "caption_source", "rank_mean"))}


def mean_rating_of_labeler(ranks: pa.Table) -> dict[str, dict[str, float | None]]:
    """Each labeler's mean rating per criterion, so that a severe one shows; None where not asked."""
    means = pa.TableGroupBy(ranks, "labeler", use_threads=False).aggregate([(name, "mean") for name in CRITERIA])
    return {
        row["labeler"]: {name: _rounded(row[f"{name}_mean"]) for name in CRITERIA}
        for row in sorted(means.to_pylist(), key=lambda row: row["labeler"])
    }


def agreement(comparisons: pa.Table) -> dict[str, dict[str, float | int | None]]:
    """How often two labelers of the same image agree on two captions, with 95 % intervals over images.

    "pairwise agreement": both rank the pair the same way or both call it a tie. "agreement without
    ties": only pairs that neither calls a tie, same way round. n counts pairs of judgements of one
    pair of captions. Empty where no image has two labelers.
    """
    verdicts: dict[tuple[str, str, str], dict[str, int]] = {}
    columns = ("image_id", "labeler", "better", "worse", "tie")
    for image, labeler, better, worse, tie in _columns(comparisons, *columns):
        first, second = sorted((better, worse))
        verdict = 0 if tie else 1 if better == first else -1
        verdicts.setdefault((image, first, second), {})[labeler] = verdict
    rows = [
        (image, one == other, one != 0 and other != 0)
        for (image, _, _), given in sorted(verdicts.items())
        for (_, one), (_, other) in combinations(sorted(given.items()), 2)
    ]
    if not rows:
        return {}
    images, agree, untied = (np.array(column) for column in zip(*rows, strict=True))
    return {
        name: bootstrap_mean(agree[chosen].astype(float), images[chosen], seed=_SEED).as_dict()
        for name, chosen in (
            ("pairwise agreement", np.full(len(agree), True)),
            ("agreement without ties", untied),
        )
    }


def _columns(table: pa.Table, *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _counts(values: Iterable[Any]) -> Mapping[str, int]:
    return dict(sorted(Counter(values).items()))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
