"""A sample of a version's pairs, made again from the landed tars: image and caption, reward, decision.

What belongs here: what is drawn, and each drawn pair against what the store says of it. What does not: the digests of
whole files (`chain.py`, `landed.py`), and decisions made again from the rewards in the store (`redo.py`).
"""

import io
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from compalign_dagster import parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.index import Budgets, read_again
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.lineage.chain import Checked
from compalign_dagster.lineage.landed import deliveries
from compalign_dagster.lineage.manifests import Fault, key_of
from compalign_dagster.lineage.sampling import bound, chance, drawn
from compalign_dagster.scoring.tables import FIGURES
from compalign_dagster.selection.select import OCCURRENCE
from compalign_dagster.selection.version import Version
from compalign_dagster.store import Store

if TYPE_CHECKING:
    from compalign_dagster.scoring.engine import Scorer

TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.01}
"""How far a reward that is made again may lie from the one in the store, by the precision it was made in."""
_ALTERED = 0.002

Place = tuple[str, str, int]  # shard, key, caption_index
Row = dict[str, Any]


@dataclass
class Recomputed:
    """What the sample showed."""

    faults: list[Fault] = field(default_factory=list)
    pairs: int = 0  # drawn and made again
    of: int = 0  # pairs of the version, of the shards that are still there
    scored: int = 0  # of the drawn ones; a cascade has turned the others down
    widest: float = 0.0  # difference of a reward
    redacted: int = 0  # drawn, but emptied by a takedown
    passed_over: list[str] = field(default_factory=list)  # shards that later batches have replaced
    wrong: set[Place] = field(default_factory=set)

    def lines(self) -> Iterator[str]:
        """The outcome in words."""
        yield (
            f"made again from the landed tars: {self.pairs:,} of {self.of:,} pairs, {self.scored:,} of them scored; "
            f"widest difference of a reward {self.widest:.2g}"
        )
        if self.redacted:
            yield f"emptied by recorded takedowns and left out: {self.redacted:,} pairs"
        if self.passed_over:
            shown = ", ".join(self.passed_over[:5])
            yield f"not made again, for other bytes lie there by now: {len(self.passed_over)} shards ({shown})"
        if self.pairs:
            yield bound(len(self.wrong), self.pairs, self.of, "pairs")
            if self.pairs < self.of:
                likely = chance(_ALTERED, self.pairs)
                yield f"a sample of this size meets one of {_ALTERED:.1%} altered pairs with a chance of {likely:.1%}"

    def blame(self, place: Place, where: str, what: str, detail: str) -> None:
        """Note that a drawn pair is not what the store says."""
        self.wrong.add(place)
        shard, key, index = place
        self.faults.append(Fault(where, what, f"{shard}, sample {key}, caption {index}: {detail}"))


def recompute(
    artifact: Artifact,
    chain: Checked,
    landing: Store,
    share: float,
    seed: str = "",
    device: str = "auto",
    *,
    without: Collection[str] = (),
) -> Recomputed:
    """Draw a share (0 to 1, rounded up in every batch) of a version's pairs and make them again.

    The draw depends on the version's data version and on `seed`. Shards in `without`, and those of another size by
    now, are left out and named; pairs that a takedown has emptied are left out and counted. Raises `InputError` when
    the model of the version is not in its chain.
    """
    version = Version.open(artifact)
    found = Recomputed()
    shards = _shards(chain, landing, set(without))
    scorers = _Scorers(chain, str(artifact.facts["model_version"]), device)
    used = {row["shard"]: row for row in version.shard_keys.iter_rows(named=True)}
    for batch in version.batches():
        decided = version.decided(batch)
        there = decided["shard"].is_in(sorted(shards))
        found.of += int(there.sum())
        found.passed_over += decided.filter(~there)["shard"].unique().sort().to_list()
        rows = decided[drawn(f"{artifact.data_version}{seed}", batch, decided.height, share)]
        where = version.ranked_list(batch).file_key("ranked.parquet")
        cuts = _cuts(version, batch)
        rows = rows.filter(pl.col("shard").is_in(sorted(shards)))
        for (name,), part in rows.sort(OCCURRENCE).partition_by("shard", as_dict=True).items():
            listed = {(row["shard"], row["key"], row["caption_index"]): row for row in part.iter_rows(named=True)}
            shard, budgets = shards[str(name)]
            again = _from_tar(shard, budgets, artifact.store, used[str(name)]["pairs_key"], listed, found)
            _score(scorers, shard, again, artifact.store, used[str(name)]["scores_key"], found)
            _decide(where, listed, again, cuts, found)
    return found


def _shards(chain: Checked, landing: Store, without: set[str]) -> dict[str, tuple[Shard, Budgets]]:
    """The landed shards that are still what was indexed, by name, and how they were read."""
    found = {}
    for delivery in deliveries(chain):
        name = delivery.shard
        if name in without:
            continue
        try:
            item = landing.stat(name)
        except CompalignError:
            continue
        if item.size == delivery.index.facts["bytes"]:
            found[name] = (Shard(name, landing, name, item.stamp), Budgets(**delivery.index.manifest["config"]))
    return found


def _from_tar(
    shard: Shard, budgets: Budgets, store: Store, pairs_key: str, listed: Mapping[Place, Row], found: Recomputed
) -> dict[Place, Row]:
    """Rows of PAIRS as the tar gives them, of those drawn pairs that the index has right."""
    rows = read_again(shard, {key for _, key, _ in listed}, budgets)
    there = {(row["shard"], row["key"], row["caption_index"]): row for row in rows}
    index = {
        (row["shard"], row["key"], row["caption_index"]): row
        for row in parquet.read(io.BytesIO(store.read(pairs_key))).to_pylist()
    }
    emptied = {place for place, row in index.items() if not (row["caption"] or "").strip()} & listed.keys()
    found.redacted += len(emptied)
    found.pairs += len(listed) - len(emptied)
    for place in listed.keys() - emptied:
        if place not in there:
            found.blame(place, f"{shard.store.url}/{shard.key}", "", "the landed tar has no such pair")
        elif place not in index:
            found.blame(place, pairs_key, "", "the index has no such pair")
        else:
            for name in PAIRS.names:
                if not _same(there[place][name], index[place][name]):
                    found.blame(
                        place, pairs_key, name, f"is {index[place][name]!r}, the tar gives {there[place][name]!r}"
                    )
    return {place: there[place] | {"listed": row} for place, row in listed.items() if place in there.keys() - emptied}


class _Scorers:
    """The version's model, loaded when it is first needed, in the precisions it scored in."""

    def __init__(self, chain: Checked, model_version: str, device: str) -> None:
        self._chain, self._device = chain, device
        self._model = next(
            (
                made
                for made in chain.artifacts.values()
                if made.kind == "reward_model" and made.facts.get("model_version") == model_version
            ),
            None,
        )
        self._version = model_version
        self._loaded: dict[str, Scorer] = {}

    def _sound(self, model: Artifact) -> bool:
        """Whether nothing is known against the model: weights that somebody altered are not loaded."""
        keys = [model.manifest_key, *(model.file_key(name) for name in model.manifest["files"])]
        return all(self._chain.sound(key) for key in keys)

    def precision(self, scores_key: str) -> str:
        """What the scores of a shard were made in."""
        made = self._chain.artifacts.get(key_of(scores_key))
        return str(made.manifest["config"].get("precision", "fp32")) if made else "fp32"

    def of(self, precision: str) -> "Scorer":
        """The model in a precision. `InputError` when it is not in the chain."""
        from compalign_dagster.reward.folder import load_model
        from compalign_dagster.scoring.config import ScoringConfig
        from compalign_dagster.scoring.engine import Scorer

        if self._model is None:
            raise InputError(
                f"reward model {self._version[:16]}",
                expected="to be among the artifacts that the version was made from",
                found="none of them",
                remedy="Verify without --recompute: the faults name what is missing.",
            )
        if not self._sound(self._model):
            raise InputError(
                f"reward model {self._model.manifest_key}",
                expected="the manifest and the files that were published",
                found="others, as the faults say",
                remedy="Restore it, or verify without --recompute.",
            )
        if precision not in self._loaded:
            with tempfile.TemporaryDirectory() as folder:
                network = load_model(self._model.checkout(Path(folder, "model")))
            self._loaded[precision] = Scorer(network, self._version, ScoringConfig(precision, self._device))
        return self._loaded[precision]


def _score(
    scorers: _Scorers, shard: Shard, again: dict[Place, Row], store: Store, scores_key: str, found: Recomputed
) -> None:
    """Give the drawn pairs their figures again, under `reward`, and compare them with the table of scores."""
    stored = {
        (row["shard"], row["key"], row["caption_index"]): row
        for row in parquet.read(io.BytesIO(store.read(scores_key))).to_pylist()
    }
    rows = [row for place, row in again.items() if row["listed"]["reward"] is not None]
    if not rows:
        return
    precision = scorers.precision(scores_key)
    pairs = parquet.from_rows([{name: row[name] for name in PAIRS.names} for row in rows], PAIRS)
    made = scorers.of(precision).score(shard, pairs).scores.to_pylist()
    found.scored += len(made)
    scored = {(row["shard"], row["key"], row["caption_index"]): row for row in made}
    for place, row in again.items():
        if row["listed"]["reward"] is None:
            continue
        if place not in scored or place not in stored:
            found.blame(
                place, scores_key, "reward", "cannot be scored again" if place in stored else "there is no score"
            )
            continue
        row["reward"] = scored[place]["reward"]
        found.widest = max(found.widest, abs(row["reward"] - stored[place]["reward"]))
        row["tolerance"] = TOLERANCE.get(precision, TOLERANCE["fp32"])
        for name in FIGURES:
            if not _near(scored[place][name], stored[place][name], row["tolerance"]):
                detail = f"is {stored[place][name]}, the model gives {scored[place][name]}"
                found.blame(place, scores_key, name, detail)


def _decide(
    where: str,
    listed: Mapping[Place, Row],
    again: Mapping[Place, Row],
    cuts: Mapping[str, tuple[float | None, bool]],
    found: Recomputed,
) -> None:
    """The list's row and the decision against what was made again; at the cut, rewards within tolerance may go
    either way."""  # noqa: D205, D209
    for place, row in again.items():
        said = listed[place]
        for name in ("pair_id", "corpus", "image_offset", "image_length", "caption_characters", "width", "height"):
            if said[name] != row[name]:
                found.blame(place, where, name, f"is {said[name]!r}, the tar gives {row[name]!r}")
        if "reward" not in row:
            continue
        if not _near(row["reward"], said["reward"], row["tolerance"]):
            found.blame(place, where, "reward", f"is {said['reward']}, the model gives {row['reward']}")
            continue
        cut, all_kept = cuts[said["corpus"]]
        kept = said["reason"] is None
        off = 0.0 if cut is None else row["reward"] - cut
        if kept and (cut is None or off < -row["tolerance"]):
            found.blame(place, where, "reason", f"is kept, its reward {row['reward']} lies below the cut {cut}")
        above = cut is not None and (all_kept or off > row["tolerance"])
        if above and said["reason"] in ("below_cut", "tied_at_cut", "no_budget"):
            found.blame(place, where, "reason", f"is dropped, its reward {row['reward']} lies above the cut {cut}")


def _cuts(version: Version, batch: str) -> dict[str, tuple[float | None, bool]]:
    """By corpus, the lowest reward that is kept, and whether the budget keeps every candidate."""
    joined = version.lists.filter(batch=batch).join(version.cuts, on="budget")
    return {row["corpus"]: (row["cut"], row["short"]) for row in joined.iter_rows(named=True)}


def _near(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):  # the index holds float32
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-7)
    return bool(one == other)
