"""What a policy would do, before it does anything: counted on the ranked lists in hand, exactly, without scoring again.

A cut's consequences are sums: what histograms and group counts say of everything above the cut's bin, and the rows
of the bin itself. What belongs here: those sums, for one policy and for a curve of fractions. What does not: making
lists (a policy with other rules needs new ones), finding cuts (`hand.py`), pairs to look at (`margin.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl

from compalign_dagster.errors import InputError
from compalign_dagster.selection import caps
from compalign_dagster.selection.counts import BIN_BITS, COARSE_BITS, bins, group_of
from compalign_dagster.selection.hand import BudgetCut, Hand
from compalign_dagster.selection.policy import REST, Policy
from compalign_dagster.selection.ranked import ROW_GROUP_ROWS
from compalign_dagster.selection.version import Version, frame_of

OTHERS = "/Others"
"""All domains but the largest; the name of a host is lower case."""

_MOST_DOMAINS = 20
_TO_COARSE = BIN_BITS - COARSE_BITS
_READ = ["reward", "human_fit", "domain", "caption_characters", "width", "height"]
_CHUNK = 64 * ROW_GROUP_ROWS
_READERS = 4  # threads that read rows at a cut
_AT_ONCE = 16  # parts whose rows at a cut are in memory together
_SUMS = ("sum_reward", "sum_human_fit", "with_human_fit")
_COUNTED = {"step": pl.Int64, "dimension": pl.String, "group": pl.String, "kept": pl.Int64}


@dataclass(frozen=True)
class Outcome:
    """What a policy keeps. Shares of groups are of candidates: pairs that no rule refuses."""

    policy: Policy
    budgets: list[dict[str, Any]]  # budget, fraction, n, k, kept, short, cut, last (tie-break of the last kept pair)
    pairs: int
    kept: int
    mean_reward: float | None
    human_fit: float  # expected number of kept pairs of which a person says that the caption fits
    with_human_fit: int  # kept pairs that have such a probability
    groups: pl.DataFrame  # dimension, group, candidates, kept; sorted

    @property
    def expected_fit(self) -> float | None:
        """Expected share of kept pairs of which a person says that the caption fits."""
        return self.human_fit / self.with_human_fit if self.with_human_fit else None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        names = ("pairs", "kept", "mean_reward", "human_fit", "with_human_fit", "expected_fit", "budgets")
        return {
            "policy": self.policy.model_dump(mode="json"),
            **{name: getattr(self, name) for name in names},
            "groups": self.groups.to_dicts(),
        }


def at_fraction(policy: Policy, fraction: Decimal | str | None, corpora: Mapping[str, Any] | None = None) -> Policy:
    """The policy with another fraction for the shared budget (None leaves it), and for named corpora."""
    fields = policy.model_dump(mode="json")
    if fraction is not None:
        fields |= {"keep_fraction": str(fraction), "keep_count": None}
    for name, value in (corpora or {}).items():
        fields["per_corpus"][name] = value
        fields["count_per_corpus"].pop(name, None)
    return Policy.model_validate(fields)


def of_budget(policy: Policy, budget: str, fraction: Decimal | str) -> Policy:
    """The policy with another fraction for one budget."""
    return at_fraction(policy, fraction) if budget == REST else at_fraction(policy, None, {budget: str(fraction)})


def what_if(hand: Hand | Version, policy: Policy, *, most_domains: int | None = _MOST_DOMAINS) -> Outcome:
    """What the policy would keep of the lists that a version was cut from.

    Reads histograms, group counts and the rows of the cut's bins. With caps that the version does not have, the
    candidates are read too. Domains but the `most_domains` largest are counted as `OTHERS`. Raises `InputError` for
    a policy whose rules need other lists.
    """
    hand = hand if isinstance(hand, Hand) else Hand(hand)
    cuts, capped = hand.cut(policy), hand.capped(policy)
    above: dict[str, int] = {}  # corpus -> bin of its cut; what lies above it is kept whole
    edges: list[tuple[int, int, int]] = []  # part, bin of its cut, rows taken
    for parts, _, cut in cuts.values():
        if cut.last is None:
            continue
        place = int(bins(np.array([-cut.last[0]], np.float32))[0])
        above |= {hand.parts[at]["corpus"]: place for at in parts}
        edges += [(at, place, taken) for at, taken in zip(parts, cut.taken, strict=True)]
    sums, counted = np.zeros(len(_SUMS)), []

    def boundary(edge: tuple[int, int, int]) -> tuple[pl.DataFrame, pl.DataFrame]:
        return _boundary(hand, *edge, capped=hand.capped_rows(capped, edge[0]))

    with ThreadPoolExecutor(_READERS) as readers:
        whole = readers.submit(_sums_above, hand, above), readers.submit(_groups_above, hand, above)
        for first in range(0, len(edges), _AT_ONCE):
            read = list(readers.map(boundary, edges[first : first + _AT_ONCE]))
            edge, away = (pl.concat(frames) for frames in zip(*read, strict=True))
            sums += _summed(edge.filter("fine")) - _summed(away)
            counted += [_counts(edge), _counts(away).with_columns(-pl.col("kept"))]
        sums += whole[0].result()
        counted.append(whole[1].result())
    return _outcome(hand, policy, cuts, sums, _together(counted), most_domains)


def curve(
    hand: Hand | Version, policies: Sequence[Policy], *, most_domains: int | None = _MOST_DOMAINS
) -> list[Outcome]:
    """The outcomes of policies of which each keeps what the one before it keeps, from one pass over what is kept.

    Raises `InputError` for policies that are not like that, or that differ in their rules or caps.
    """
    hand = hand if isinstance(hand, Hand) else Hand(hand)
    cuts = [hand.cut(policy) for policy in policies]
    taken = np.array([[_taken_of(cut, at) for at in range(len(hand.parts))] for cut in cuts], np.int64)
    if len({caps.limits(policy) for policy in policies}) != 1 or (np.diff(taken, axis=0) < 0).any():
        raise InputError(
            "what-if",
            expected="policies with the same caps, each keeping what the one before it keeps",
            found="others",
            remedy="Ask for each on its own.",
        )
    capped, shown = hand.capped(policies[0]), _shown(hand, most_domains)
    sums, counts = np.zeros((len(policies), len(_SUMS))), [pl.DataFrame(schema=_COUNTED)]
    for at in range(len(hand.parts)):
        for added, found in _steps(hand, at, taken[:, at], hand.capped_rows(capped, at), shown):
            sums += added
            counts.append(found)
    steps = pl.concat(counts).group_by("step", "dimension", "group").agg(pl.col("kept").sum())
    return [
        _outcome(hand, policy, cut, total, _together([steps.filter(pl.col("step") <= at)]), most_domains)
        for at, (policy, cut, total) in enumerate(zip(policies, cuts, sums.cumsum(axis=0), strict=True))
    ]


def _boundary(hand: Hand, at: int, place: int, taken: int, capped: np.ndarray) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows at a cut that are to be counted one by one, and the capped ones of all that are taken.

    The rows are those in the groups' bin; in `fine`, whether in the histogram's, which is a part of it.
    """
    (found, counts), start = hand.bins[at], hand.parts[at]["start"]
    fine = start + int(counts[found > place].sum())
    coarse = start + int(counts[found >> _TO_COARSE > place >> _TO_COARSE].sum())
    with hand.rows(at, _READ) as rows:
        edge = rows.slice(coarse, start + taken)
        away = rows.at(capped[capped < start + taken])
    return edge.with_columns(fine=pl.col("row") >= fine), away


def _steps(
    hand: Hand, at: int, taken: np.ndarray, capped: np.ndarray, shown: pl.Series
) -> Iterator[tuple[np.ndarray, pl.DataFrame]]:
    """What each of rising cuts takes of a part beyond the one before it: sums [cuts, 3], and counts by group."""
    start = hand.parts[at]["start"]
    with hand.rows(at, _READ) as rows:
        for first in range(start, start + int(taken[-1]), _CHUNK):
            frame = rows.slice(first, min(first + _CHUNK, start + int(taken[-1])))
            place = frame["row"].to_numpy()
            step = pl.Series("step", np.searchsorted(taken, place - start, side="right"), dtype=pl.Int64)
            frame = frame.with_columns(step, domain=_only(shown)).filter(~np.isin(place, capped))
            sums = np.zeros((len(taken), len(_SUMS)))
            for (found,), part in frame.group_by("step"):
                sums[found] += _summed(part)
            yield sums, _counts(frame, "step")


def _sums_above(hand: Hand, above: Mapping[str, int]) -> np.ndarray:
    sums = np.zeros(len(_SUMS))
    for batch, parts in groupby(range(len(hand.parts)), key=lambda at: hand.parts[at]["batch"]):
        frame, start = frame_of(hand.version.ranked_list(batch), "histogram.parquet", list(_SUMS)), 0
        for at in parts:
            found, _ = hand.bins[at]
            whole = int((found > above.get(hand.parts[at]["corpus"], 1 << BIN_BITS)).sum())
            sums += frame.slice(start, whole).sum().row(0)
            start += len(found)
    return sums


def _groups_above(hand: Hand, above: Mapping[str, int]) -> pl.DataFrame:
    coarse = {corpus: place >> _TO_COARSE for corpus, place in above.items()}
    if not coarse:
        return pl.DataFrame(schema=_COUNTED)
    kept = hand.group_files.filter(pl.col("coarse").cast(pl.Int64) > _threshold(coarse, COARSE_BITS))
    return kept.group_by("dimension", "group").agg(kept=pl.col("pairs").sum()).collect(engine="streaming")


def _threshold(above: Mapping[str, int], bits: int) -> pl.Expr:
    """The bin of a corpus's cut; more than any bin where nothing is kept."""
    return pl.col("corpus").replace_strict(dict(above), default=1 << bits, return_dtype=pl.Int64)


def _outcome(
    hand: Hand,
    policy: Policy,
    cuts: Mapping[str, BudgetCut],
    sums: np.ndarray,
    groups: pl.DataFrame,
    most_domains: int | None,
) -> Outcome:
    kept, shown = sum(found.cut.kept for found in cuts.values()), _shown(hand, most_domains)
    folded = (
        hand.candidates.join(groups, on=["dimension", "group"], how="full", coalesce=True)
        .with_columns(group=pl.when(dimension="domain").then(_only(shown, "group")).otherwise("group"))
        .group_by("dimension", "group")
        .agg(pl.col("candidates").sum(), pl.col("kept").sum())
    )
    return Outcome(
        policy,
        [_budget(hand, policy, name, found) for name, found in cuts.items()],
        sum(part["rows"] for part in hand.parts),
        kept,
        float(sums[0]) / kept if kept else None,
        float(sums[1]),
        round(sums[2]),
        pl.concat([_by_corpus(hand, hand.capped(policy), cuts), folded]).sort("dimension", "group"),
    )


def _budget(hand: Hand, policy: Policy, name: str, found: BudgetCut) -> dict[str, Any]:
    fraction, cut = policy.fraction_of(name), found.cut
    return {
        "budget": name,
        "fraction": None if fraction is None else format(fraction, "f"),
        "n": sum(hand.parts[at]["rows"] for at in found.parts),
        "k": found.k,
        "kept": cut.kept,
        "short": cut.kept < found.k,
        "cut": -cut.last[0] if cut.last else None,
        "last": list(cut.last[1:]) if cut.last else None,
    }


def _by_corpus(hand: Hand, capped: pl.DataFrame, cuts: Mapping[str, BudgetCut]) -> pl.DataFrame:
    rows = []
    for parts, _, cut in cuts.values():
        for at, taken in zip(parts, cut.taken, strict=True):
            part = hand.parts[at]
            away = int((hand.capped_rows(capped, at) < part["start"] + taken).sum())
            rows.append(("corpus", part["corpus"], part["eligible"], taken - away))
    frame = pl.DataFrame(rows, schema=["dimension", "group", "candidates", "kept"], orient="row")
    return frame.group_by("dimension", "group").agg(pl.col("candidates").sum(), pl.col("kept").sum())


def _taken_of(cuts: Mapping[str, BudgetCut], at: int) -> int:
    return next(cut.taken[parts.index(at)] for parts, _, cut in cuts.values() if at in parts)


def _shown(hand: Hand, most_domains: int | None) -> pl.Series:
    """The domains with most candidates."""
    domains = hand.candidates.filter(dimension="domain").sort("candidates", "group", descending=[True, False])
    return domains["group"].head(domains.height if most_domains is None else most_domains)


def _summed(frame: pl.DataFrame) -> np.ndarray:
    """The sums of _SUMS over rows of a list."""
    fit = frame["human_fit"].cast(pl.Float64).fill_nan(None)
    return np.array([frame["reward"].cast(pl.Float64).sum(), fit.sum(), len(fit) - fit.null_count()], np.float64)


def _counts(frame: pl.DataFrame, *by: str) -> pl.DataFrame:
    """Rows of a list by the columns of `by`, dimension and group: `*by, dimension, group, kept`.

    Numbers are counted before they are named: naming every row would take most of the time.
    """
    shorter = pl.min_horizontal("width", "height")
    values = {"domain": "domain", "caption_length": "caption_characters", "resolution": "width"}
    frame = frame.select(*by, "domain", "caption_characters", width=shorter)
    return pl.concat(
        frame.group_by(*by, value)
        .agg(kept=pl.len().cast(pl.Int64))
        .with_columns(height=pl.col(value))
        .select(*by, pl.lit(name).alias("dimension"), group_of(name).alias("group"), "kept")
        for name, value in values.items()
    )


def _together(counted: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """`dimension, group, kept`, each group once."""
    parts = [frame.select("dimension", "group", "kept") for frame in (pl.DataFrame(schema=_COUNTED), *counted)]
    return pl.concat(parts).group_by("dimension", "group").agg(pl.col("kept").sum())


def _only(shown: pl.Series, column: str = "domain") -> pl.Expr:
    """A domain's name where it is shown, else `OTHERS`."""
    name = pl.col(column).fill_null("")
    return pl.when(name.is_in(shown.implode())).then(name).otherwise(pl.lit(OTHERS))
