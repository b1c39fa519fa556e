"""Why a pair is kept by one version of the dataset and not by the other: each change has exactly one cause.

What belongs here: the causes and how they are told apart. What does not: finding the changes (`diff.py`).
"""

from collections import defaultdict
from typing import Any

import polars as pl

from compalign_dagster.errors import InputError
from compalign_dagster.selection import caps, reasons
from compalign_dagster.selection.hand import Hand
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.version import Version

ENTERED, LEFT = "entered", "left"
SIDES = (ENTERED, LEFT)
CAUSES = {
    "shard_new": "its shard came to the crawl",
    "shard_replaced": "its shard was delivered again with other content",
    "shard_removed": "its shard was removed from the crawl",
    "scoring": "scoring gave it a reward, or none, where it did the other before",
    reasons.TAKEDOWN: "it came on the block list, or off it: somebody asked for it to go",
    reasons.EVALUATION_OVERLAP: "it came on the block list, or off it: a set that models are evaluated on",
    "rules": "the policy's rules changed: floors, languages, caption patterns, sampling",
    "caps": "the policy's caps changed",
    "cut": "the policy's fraction or count changed: under the older one it would have stayed as it was",
    "model": "another model gave other rewards",
    "crawl": "other pairs came or went, and the same policy cuts elsewhere",
}  # fmt: skip
COLUMNS = [*TIE_BREAK, "corpus", "reward", "image_offset", "image_length"]


class Why:
    """The causes of changes from one version to another."""

    def __init__(self, a: Version, b: Version) -> None:
        self.other_rules = a.policy.rules() != b.policy.rules()
        self.other_caps = caps.limits(a.policy) != caps.limits(b.policy)
        self.other_model = _model(a) != _model(b)
        names = ["shard", "index_version"]
        self._shards = a.shards.select(names).join(
            b.shards.select(names), on="shard", how="full", coalesce=True, suffix="_b"
        )
        self._kept = self._cut_again(a, b)

    def as_before(self, batch: str, frame: pl.DataFrame) -> pl.DataFrame:
        """Whether the older policy would keep rows of a newer list: `row`, `as_before` (null where that is unknown)."""
        if self._kept is None:
            return frame.select("row", as_before=pl.lit(None, pl.Boolean))
        kept = pl.lit(False)
        for start, end, capped in self._kept.get(batch, []):
            inside = pl.col("row").is_between(start, end - 1)
            kept = kept | (inside & pl.col("row").is_in(capped).not_() if capped else inside)
        return frame.select("row", as_before=kept)

    def explain(self, changed: pl.DataFrame) -> pl.DataFrame:
        """Changes with their side and cause."""
        entered = pl.col("kept_b")
        elsewhere = pl.lit("model" if self.other_model else "crawl")
        known = pl.when(entered).then("in_a").otherwise("in_b")
        reason = pl.when(entered).then("reason_a").otherwise("reason_b")
        cause = (
            pl.when(~known & pl.when(entered).then("index_version").otherwise("index_version_b").is_null())
            .then(pl.when(entered).then(pl.lit("shard_new")).otherwise(pl.lit("shard_removed")))
            .when(~known & (pl.col("index_version") != pl.col("index_version_b")))
            .then(pl.lit("shard_replaced"))
            .when(~known | (reason == reasons.CASCADE_REJECT))
            .then(pl.lit("scoring"))
            .when(reason.is_in(reasons.OF_BLOCK_LIST))
            .then(reason)
            .when(reason.is_in(reasons.OF_ROW))
            .then(pl.lit("rules") if self.other_rules else elsewhere)
            .when(reason.is_in(reasons.OF_CAP))
            .then(pl.lit("caps") if self.other_caps else elsewhere)
            .when(pl.col("as_before").is_null())
            .then(pl.lit("rules"))
            .when(entered != pl.col("as_before"))
            .then(pl.lit("cut"))
            .otherwise(elsewhere)
        )
        of_keeper = [
            pl.when(entered).then(name).otherwise(f"{name}_a").alias(name) for name in COLUMNS if name not in TIE_BREAK
        ]
        return changed.join(self._shards, on="shard", how="left").select(
            *TIE_BREAK,
            *of_keeper,
            side=pl.when(entered).then(pl.lit(ENTERED)).otherwise(pl.lit(LEFT)),
            cause=cause,
            before="reward_a",
            after="reward",
            reason=reason,
        )

    def _cut_again(self, a: Version, b: Version) -> dict[str, list[tuple[int, int, list[int]]]] | None:
        """What the older policy would keep of the newer lists: leading rows and capped ones, by batch."""
        hand = Hand(b)
        try:
            cuts, capped = hand.cut(a.policy), hand.capped(a.policy)
        except InputError:  # other rules, or caps without the groups they need
            return None
        found: dict[str, list[tuple[int, int, list[int]]]] = defaultdict(list)
        for of, _, cut in cuts.values():
            for at, taken in zip(of, cut.taken, strict=True):
                part = hand.parts[at]
                rows = hand.capped_rows(capped, at).tolist()
                found[part["batch"]].append((part["start"], part["start"] + taken, rows))
        return found


def _model(version: Version) -> Any:
    return version.shards["model_version"].unique().sort().to_list()
