"""A version made of ranked lists and cuts decides as a few lines of plain Python do, whatever the crawl.

The reference here knows no lists, no batches and no files: it sorts all pairs and walks through them. What rules,
caps and budgets mean is stated by it once more, on purpose. `select.choose` is held against both.
"""

import hashlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.crawl.clusters import ASSIGNMENT
from compalign_dagster.crawl.duplicates import DUPLICATES
from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.errors import CompalignError
from compalign_dagster.scoring.tables import LEDGER, REJECTED, SCORES
from compalign_dagster.selection import caps, cut, deciding, ranked, reasons, version
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.sampling import Sampling
from compalign_dagster.selection.select import choose
from compalign_dagster.selection.tables import CAPPED
from compalign_dagster.store import LocalStore
from compalign_dagster.versions import digest_json
from tests.unit.selection.builders import frame

pytestmark = pytest.mark.slow

CORPORA = ("a", "b", "c")
EXTREME = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e-45, 3.4028234663852886e38, -3.4028234663852886e38, 1.0000001)
REWARDS = st.one_of(
    st.sampled_from(EXTREME), st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-3, 3).map(float)
)
FRACTIONS = st.one_of(st.sampled_from(["0", "1", "0.5", "0.3"]), st.decimals(0, 1, places=3).map(str))
SAMPLINGS = st.builds(
    Sampling, floor=st.sampled_from([-2.0, 0.0]), full=st.sampled_from([0.5, 3.0]), seed=st.integers(0, 9)
)
QUICK = settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])

QUICK_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None  # the store waits for the disk at every object


@dataclass(frozen=True)
class Pair:
    """One occurrence; `reward` None where a cascade turned it down."""

    content: int  # equal numbers are equal image and caption, so equal ids
    corpus: str
    slot: int  # of the corpus' shards; the batch, where nothing else is said
    reward: float | None
    domain: str | None
    fit: float | None
    at: int = 0  # makes the occurrence unlike every other

    @property
    def shard(self) -> str:
        return f"{self.corpus}/{self.slot}.tar"

    @property
    def pair_id(self) -> str:
        return f"{self.content * 0x9E3779B97F4A7C15 % 2**128:032x}"

    @property
    def place(self) -> tuple[str, str, int]:
        return self.shard, f"{self.at * 7919 % 100_003:06d}é", self.at % 3

    @property
    def rank(self) -> tuple:
        reward, (shard, key, index) = 0.0 if self.reward is None else self.reward, self.place
        return -reward, self.pair_id.encode(), shard.encode(), key.encode(), index


PAIR = st.builds(
    Pair,
    content=st.integers(0, 12),
    corpus=st.sampled_from(CORPORA),
    slot=st.integers(0, 3),
    reward=st.one_of(REWARDS, REWARDS, REWARDS, st.none()),
    domain=st.sampled_from([None, "x.org", "y.org", "z.org"]),
    fit=st.one_of(st.none(), st.floats(0, 1, width=32)),
)
CRAWL = st.lists(PAIR, min_size=1, max_size=40).map(
    lambda pairs: [replace(pair, at=at) for at, pair in enumerate(pairs)]
)
SCORED = CRAWL.map(lambda pairs: [replace(pair, reward=0.0 if pair.reward is None else pair.reward) for pair in pairs])


@st.composite
def policies(draw: st.DrawFn, *, rules: bool = True) -> Policy:
    budget: dict[str, Any] = draw(
        st.one_of(FRACTIONS.map(lambda f: {"keep_fraction": f}), st.integers(0, 45).map(lambda k: {"keep_count": k}))
    )
    budget["per_corpus"] = draw(st.dictionaries(st.sampled_from(["a", "nowhere"]), FRACTIONS))
    budget["count_per_corpus"] = draw(st.dictionaries(st.just("b"), st.integers(0, 20)))
    if rules:
        budget |= {
            "reward_floor": draw(st.one_of(st.none(), st.sampled_from([-0.5, 0.0, 1.0]))),
            "sampling": draw(st.one_of(st.none(), SAMPLINGS)),
            "floors": draw(st.dictionaries(st.just("human_fit"), st.sampled_from([0.0, 0.25, 0.5]))),
            "most_per_domain": draw(st.one_of(st.none(), st.integers(1, 4))),
            "most_per_duplicate_group": draw(st.one_of(st.none(), st.integers(1, 2))),
            "most_per_semantic_cluster": draw(st.one_of(st.none(), st.integers(1, 3))),
        }
    return Policy(**budget)


def reference(pairs: Sequence[Pair], policy: Policy) -> dict[tuple, str | None]:
    """The reason of every occurrence by its place; None for a kept one."""
    found = {pair.place: _rule(pair, policy) for pair in pairs}
    left = sorted((pair for pair in pairs if found[pair.place] is None), key=lambda pair: pair.rank)
    for reason, group, most in (
        (reasons.DUPLICATE_CAP, lambda pair: pair.content % 5, policy.most_per_duplicate_group),
        (reasons.CLUSTER_CAP, lambda pair: cluster_of(pair), policy.most_per_semantic_cluster),
        (reasons.DOMAIN_CAP, lambda pair: pair.domain, policy.most_per_domain),
    ):
        counts = Counter[Any]()
        for pair in left if most is not None else ():
            counts[group(pair)] += 1
            if group(pair) is not None and counts[group(pair)] > most:
                found[pair.place] = reason
        left = [pair for pair in left if found[pair.place] is None]
    for budget in {policy.budget_of(pair.corpus) for pair in pairs}:
        of = [pair for pair in left if policy.budget_of(pair.corpus) == budget]
        k = _count(policy, budget, sum(policy.budget_of(pair.corpus) == budget for pair in pairs))
        for pair in of[k:]:
            tied = k > 0 and pair.reward == of[k - 1].reward
            found[pair.place] = reasons.NO_BUDGET if k == 0 else reasons.TIED_AT_CUT if tied else reasons.BELOW_CUT
    return found


def cluster_of(pair: Pair) -> int | None:
    """The semantic cluster of a pair's image; some are in none."""
    return None if pair.content % 6 == 4 else pair.content % 3


def _rule(pair: Pair, policy: Policy) -> str | None:
    if pair.reward is None:
        return reasons.CASCADE_REJECT
    floor = policy.floors.get("human_fit")
    if floor is not None and (pair.fit is None or pair.fit < floor):
        return reasons.FLOOR
    if policy.reward_floor is not None and pair.reward < policy.reward_floor:
        return reasons.REWARD_FLOOR
    return None if policy.sampling is None or _drawn(pair, policy.sampling) else reasons.NOT_SAMPLED


def _drawn(pair: Pair, sampling: Sampling) -> bool:
    """In exact arithmetic."""
    floor, full = Fraction(sampling.floor), Fraction(sampling.full)
    digest = hashlib.sha256(f"{sampling.seed}:{pair.pair_id}".encode()).hexdigest()
    number = Fraction(int(digest[:16], 16) >> 11, 2**53)
    return number < min(max((Fraction(pair.reward or 0) - floor) / (full - floor), Fraction(0)), Fraction(1))


def _count(policy: Policy, budget: str, n: int) -> int:
    if budget in policy.count_per_corpus:
        return min(n, policy.count_per_corpus[budget])
    fraction = policy.per_corpus.get(budget, policy.keep_fraction)
    if fraction is None:
        return min(n, policy.keep_count or 0)
    exact = Fraction(Decimal(fraction)) * n
    return int(exact + Fraction(1, 2))


def landed(
    store: LocalStore, pairs: Sequence[Pair], batch_of: Mapping[str, int] | None = None, *, empty: bool = False
) -> list[dict[str, Any]]:
    """Index, scores and rejections of these pairs in the store; the ledger's rows.

    `batch_of` says which batch a shard came with; with `empty`, one more batch came with a shard without pairs.
    """
    shards: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        shards[pair.shard].append(pair)
    rows = [_shard(store, shard, (batch_of or {}).get(shard, of[0].slot), of) for shard, of in shards.items()]
    return [*rows, _shard(store, "a/empty.tar", 9, [])] if empty else rows


def _shard(store: LocalStore, shard: str, batch: int, pairs: Sequence[Pair]) -> dict[str, Any]:
    scored = [_row(pair) for pair in pairs if pair.reward is not None]
    rejected = [_row(pair) for pair in pairs if pair.reward is None]
    content = digest_json(sorted(map(str, pairs)))  # the same for other orders of rows
    tables = {
        "pairs": (PAIRS, [_row(pair) for pair in pairs]),
        "scores": (SCORES, scored),
        "rejected": (REJECTED, rejected),
    }
    for name, (schema, rows) in tables.items():
        path = parquet.write(parquet.from_rows(rows, schema), store.root / f"{name}.work")
        store.put_new(f"{name}/{shard}/{content}/{name}.parquet", path)
    return {
        "shard": shard,
        "batch": f"batch-{batch:05d}",
        "model_version": "m" * 64,
        **{f"{name}_key": f"{name}/{shard}/{content}/{name}.parquet" for name in ("pairs", "scores")},
        "rejected_key": f"rejected/{shard}/{content}/rejected.parquet" if rejected else None,
        "index_version": content,
        "data_version": content,
        "work_key": "w",
        "pairs": len(pairs),
        "scored": len(scored),
        "rejected": len(rejected),
        "quarantined": 0,
    }


def _row(pair: Pair) -> dict[str, Any]:
    shard, key, index = pair.place
    known = {
        "pair_id": pair.pair_id, "shard": shard, "key": key, "caption_index": index, "corpus": pair.corpus,
        "caption": "c", "reward": pair.reward, "human_fit": pair.fit, "model_version": "m" * 64, "cheap": 0.0,
        "url": pair.domain and f"https://{pair.domain}/{key}",
    }  # fmt: skip
    zeros = {field.name: 0 if field.type in ("int32", "int64", "float") else "" for field in PAIRS}
    return zeros | known


def grouped(store: LocalStore, pairs: Sequence[Pair], rows: Sequence[dict[str, Any]]) -> None:
    """The duplicate groups of this crawl, by the last digits of the content's number, and its semantic clusters."""
    folder = store.root
    ledger = parquet.write(parquet.from_rows(list(rows), LEDGER), folder / "ledger.parquet")
    parent = artifacts.publish(store, "score_ledger", "l", {"ledger.parquet": ledger}, **_NOTHING)
    entries = [{**_row(pair), "group_id": str(pair.content % 5)} for pair in pairs]
    entries = [{name: entry.get(name, 0) for name in DUPLICATES.names} for entry in entries]
    unique = {(entry["shard"], entry["key"]): entry for entry in entries}
    table = parquet.write(
        parquet.from_rows([unique[place] for place in sorted(unique)], DUPLICATES), folder / "duplicates.parquet"
    )
    made = artifacts.publish(
        store, "duplicate_groups", "d", {"duplicates.parquet": table}, **_NOTHING | {"inputs": [parent.as_input()]}
    )
    latest.point(made)
    of = {pair.place[:2]: cluster for pair in pairs if (cluster := cluster_of(pair)) is not None}
    assigned = [{"shard": shard, "key": key, "cluster": of[shard, key]} for shard, key in sorted(of)]
    table = parquet.write(parquet.from_rows(assigned, ASSIGNMENT), folder / "assignment.parquet")
    made = artifacts.publish(
        store, "semantic_clusters", "c", {"assignment.parquet": table}, **_NOTHING | {"inputs": [parent.as_input()]}
    )
    latest.point(made)


_NOTHING: dict[str, Any] = {"code_version": 1, "inputs": [], "config": {}, "facts": {}}


@contextmanager
def made(
    pairs: Sequence[Pair],
    policy: Policy,
    batch_of: Mapping[str, int] | None = None,
    *,
    empty: bool = False,
    mixed: Callable[[list], None] = lambda rows: None,
) -> Iterator[version.Version]:
    """The published version of a crawl, in a store of its own; `mixed` brings the ledger's rows into another order."""
    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as folder:
        store = LocalStore(Path(folder))
        rows = landed(store, pairs, batch_of, empty=empty)
        if caps.needed(policy):
            grouped(store, pairs, rows)
        mixed(rows)
        ledger = artifacts.publish(store, "score_ledger", "empty", {"x": b""}, **_NOTHING)
        others = deciding.others_of(store, rows, policy)
        key = deciding.key_with(others, rows, policy, {})
        decided = deciding.decide(store, rows, policy, others)
        yield version.Version.open(deciding.publish(decided, ledger, key, config={}))


def decisions(found: version.Version) -> dict[tuple, str | None]:
    """The reason of every occurrence, as the version's reader gives it."""
    frames = [found.decided(batch, ["shard", "key", "caption_index"]) for batch in found.batches()]
    rows = [row for each in frames for row in each.drop("row").iter_rows()]
    decided = {row[:3]: row[3] for row in rows}
    assert len(decided) == len(rows), "an occurrence is decided once"
    return decided


def held_to_the_reference(pairs: Sequence[Pair], policy: Policy, *, empty: bool = False) -> None:
    """Every decision, every count and every list of kept pairs of a version are the reference's."""
    wanted = reference(pairs, policy)
    with made(pairs, policy, empty=empty) as found:
        assert decisions(found) == wanted
        kept = {place for place, reason in wanted.items() if reason is None}
        listed = [
            row for batch in found.batches() for row in found.kept(batch, ["shard", "key", "caption_index"]).rows()
        ]
        assert sorted(listed) == sorted(kept)
        facts = found.facts
        assert facts["dropped_by_reason"] == Counter(reason for reason in wanted.values() if reason)
        assert facts["pairs"] == facts["kept"] + facts["dropped"] + facts["quarantined"] == len(pairs)
        for row in found.cuts.iter_rows(named=True):
            of = {pair.place for pair in pairs if policy.budget_of(pair.corpus) == row["budget"]}
            assert (row["n"], row["kept"]) == (len(of), len(of & kept))
            assert row["k"] == _count(policy, row["budget"], len(of))
            assert row["short"] == (row["kept"] < row["k"])
            assert row["tied_at_cut"] == sum(wanted[place] == reasons.TIED_AT_CUT for place in of)
        ids = sorted({pair.pair_id for pair in pairs})
        asked = found.find(ids[:3]).select("shard", "key", "caption_index", "reason").rows()
        places = {pair.place for pair in pairs if pair.pair_id in ids[:3]}
        assert {row[:3]: row[3] for row in asked} == {place: wanted[place] for place in places}


def many(count: int = 300, seed: int = 3) -> list[Pair]:
    """A crawl with everything in it, on which a defect of any part must show."""
    generator = np.random.default_rng(seed)
    rewards = np.where(generator.random(count) < 0.1, generator.normal(size=count), generator.integers(-2, 3, count))
    return [
        Pair(
            content=int(generator.integers(0, 12)),
            corpus=CORPORA[at % 3],
            slot=int(generator.integers(0, 4)),
            reward=None if at % 17 == 5 else float(np.float32(rewards[at])),
            domain=[None, "x.org", "y.org", "z.org"][int(generator.integers(0, 4))],
            fit=None if at % 11 == 3 else float(np.float32(generator.random())),
            at=at,
        )
        for at in range(count)
    ]


@given(CRAWL, policies(), st.booleans())
@QUICK
def test_a_version_decides_as_the_reference_does_whatever_the_rules_and_caps(pairs, policy, empty):
    held_to_the_reference(pairs, policy, empty=empty)


@given(SCORED, policies(rules=False), st.booleans())
@QUICK
@example([Pair(1, "a", 0, -0.0, None, None)], Policy(keep_fraction="0.5"), True)
def test_without_rules_a_version_is_the_decision_in_memory(pairs, policy, empty):
    rows = [{**_row(pair), "reward": pair.reward + 0.0} for pair in pairs]
    chosen = choose(frame(rows), policy).select("shard", "key", "caption_index", "reason")
    with made(pairs, policy, empty=empty) as found:
        assert decisions(found) == {row[:3]: row[3] for row in chosen.rows()}


@given(SCORED, FRACTIONS)
@QUICK
def test_exactly_k_are_kept_of_a_budget_that_has_enough(pairs, fraction):
    with made(pairs, Policy(keep_fraction=fraction)) as found:
        assert found.facts["kept"] == int(Fraction(Decimal(fraction)) * len(pairs) + Fraction(1, 2))


@given(SCORED, FRACTIONS, SAMPLINGS)
@QUICK
def test_of_what_was_sampled_exactly_k_are_kept_or_all_where_it_is_less(pairs, fraction, sampling):
    with made(pairs, Policy(keep_fraction=fraction, sampling=sampling)) as found:
        k = int(Fraction(Decimal(fraction)) * len(pairs) + Fraction(1, 2))
        assert found.facts["kept"] == min(k, sum(_drawn(pair, sampling) for pair in pairs))


@given(st.integers(1, 30), REWARDS, FRACTIONS)
@QUICK
def test_equal_rewards_are_kept_in_the_order_of_their_identity(count, reward, fraction):
    held_to_the_reference(
        [Pair(at % 4, "a", at % 3, reward, None, None, at) for at in range(count)], Policy(keep_fraction=fraction)
    )


@given(CRAWL, policies(), st.randoms(use_true_random=False))
@QUICK
def test_the_same_inputs_in_another_order_give_the_same_bytes(pairs, policy, random):
    other = random.sample(pairs, len(pairs))
    with made(pairs, policy) as one, made(other, policy, mixed=random.shuffle) as two:
        assert one.artifact.data_version == two.artifact.data_version
        assert one.artifact.work_key == two.artifact.work_key
        assert one.lists.equals(two.lists), "every ranked list has the same data version"


@given(CRAWL, policies(), st.randoms(use_true_random=False))
@QUICK
def test_which_batch_brought_a_shard_decides_nothing(pairs, policy, random):
    batch_of = {pair.shard: random.randint(0, 4) for pair in pairs}
    with made(pairs, policy, batch_of) as found:
        assert decisions(found) == reference(pairs, policy)


@given(CRAWL, policies(), st.integers(1, 8))
@QUICK
def test_the_cut_is_the_same_however_few_rows_fit_into_memory(pairs, policy, rows):
    with patch.object(deciding, "find_cut", partial(cut.find_cut, in_memory_rows=rows)):
        held_to_the_reference(pairs, policy)


LIST_ROWS = 40_000
SPREAD = np.random.default_rng(5).normal(size=2 * LIST_ROWS).astype(np.float32)


def rows_read(rewards: np.ndarray, policy: Policy) -> tuple[int, int]:
    """Rows of ranked lists that are decoded to find the cut among two lists of these rewards, and rows in all."""
    pairs = [Pair(at, "a", at // LIST_ROWS, float(reward), None, None, at) for at, reward in enumerate(rewards)]
    read: list[int] = []

    class Counted(cut.Rows):
        def _table(self, low: int, high: int) -> pa.Table:
            read.append(high - low)
            return super()._table(low, high)

    with tempfile.TemporaryDirectory(dir=QUICK_DISK) as folder:
        store = LocalStore(Path(folder))
        rows = landed(store, pairs)
        deciding.decide(store, rows, policy)  # the lists are there
        with patch.object(cut, "Rows", Counted):
            deciding.decide(store, rows, policy)
    return sum(read), len(pairs)


def test_only_the_rows_of_the_bin_that_holds_the_cut_are_read():
    read, of = rows_read(SPREAD, Policy(keep_fraction="0.3"))
    assert 0 < read < of / 100


def test_the_planted_bug_of_a_histogram_with_one_bin_reads_every_row():
    with patch.object(ranked, "bins", lambda reward: np.zeros(len(reward), np.uint32)):
        read, of = rows_read(SPREAD, Policy(keep_fraction="0.3"))
    assert read >= of


def _wrong_order_of_negatives(reward: np.ndarray) -> np.ndarray:
    return (reward.astype(np.float32).view(np.uint32) >> 12).astype(np.uint32)


def _one_too_many(segments: Any, k: int, **options: Any) -> cut.Cut:
    return cut.find_cut(segments, k + 1, **options)


def _everything_tied(segments: Any, k: int, **options: Any) -> cut.Cut:
    """A threshold: whoever has the last kept pair's reward is kept too."""
    return cut.find_cut(segments, k + cut.find_cut(segments, k, **options).tied, **options)


BUGS = {
    "negative rewards ranked by their bits": (ranked, "bins", _wrong_order_of_negatives),
    "one pair too many": (deciding, "find_cut", _one_too_many),
    "a threshold that keeps all ties": (deciding, "find_cut", _everything_tied),
    "the worst of a domain kept": (caps, "_BEST_FIRST", "reward, pair_id, shard, key, caption_index"),
    "domains capped before clusters": (caps, "CAPS", tuple(caps.CAPS[at] for at in (0, 2, 1))),
    "clusters capped before duplicates": (caps, "CAPS", tuple(caps.CAPS[at] for at in (1, 0, 2))),
    "caps forgotten": (caps, "capped", lambda lists, policy, groups: _NOBODY),
    "numbers that go by the order of rows": (Sampling, "number", lambda self, pair_id: next(_LAST) % 97 / 97),
    "another seed": (Sampling, "number", lambda self, pair_id: _NUMBER(Sampling(floor=0, full=1, seed=8), pair_id)),
    "floors forgotten": (
        ranked,
        "_reason",
        lambda rules: pl.when(pl.col("reward").is_null()).then(pl.lit(reasons.CASCADE_REJECT)),
    ),
}
_LAST, _NUMBER = count(), Sampling.number
_NOBODY = pl.DataFrame(schema=pl.DataFrame(pl.from_arrow(CAPPED.empty_table())).schema)
EVERYTHING = Policy(
    keep_fraction="0.3",
    per_corpus={"a": "0.7"},
    count_per_corpus={"b": 11},
    floors={"human_fit": 0.2},
    sampling={"floor": -2.5, "full": 1.0, "seed": 7},
    most_per_domain=30,
    most_per_duplicate_group=35,
    most_per_semantic_cluster=45,
)


def test_the_crawl_that_bugs_are_planted_in_is_decided_as_the_reference_does():
    held_to_the_reference(many(), EVERYTHING)
    assert {*reference(many(), EVERYTHING).values()} >= {
        None, reasons.FLOOR, reasons.NOT_SAMPLED, reasons.CASCADE_REJECT, reasons.DUPLICATE_CAP, reasons.CLUSTER_CAP,
        reasons.DOMAIN_CAP, reasons.TIED_AT_CUT,
    }  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_turns_the_comparison_with_the_reference_red(bug):
    where, name, wrong = BUGS[bug]
    with patch.object(where, name, wrong), pytest.raises((AssertionError, CompalignError)):
        held_to_the_reference(many(), EVERYTHING)


def test_the_planted_bug_of_a_table_in_the_order_of_arrival_changes_the_bytes():
    sound = deciding._shards_used

    def as_they_came(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
        return pl.concat([sound([row]) for row in rows])

    policy = Policy(keep_fraction="0.3")
    with (
        patch.object(deciding, "_shards_used", as_they_came),
        made(many(), policy) as one,
        made(many(), policy, mixed=list.reverse) as two,
    ):
        assert one.artifact.data_version != two.artifact.data_version
