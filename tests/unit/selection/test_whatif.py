"""What-if equals what happens: predicted counts are the materialised ones, for every fraction, policy and group."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from assets.duplicate_groups import publish_groups
from compalign_dagster import parquet
from compalign_dagster.errors import InputError
from compalign_dagster.selection import caps, deciding, hand, whatif
from compalign_dagster.selection.counts import DIMENSIONS, group_of
from compalign_dagster.selection.cut import Rows
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.whatif import Outcome, at_fraction, curve, of_budget, what_if
from tests.support.small_clusters import small_clusters
from tests.support.small_version import SmallStore, small_store

GLOBAL = Policy(keep_fraction="0.3")
PER_CORPUS = Policy(keep_fraction="0.3", per_corpus={"shop": "0.1"})
RULES_AND_CAPS = Policy(keep_fraction="0.3", floors={"human_fit": 0.2}, reward_floor=-1.0, most_per_domain=9,
                        sampling={"floor": -1.25, "full": 1.0})  # fmt: skip
POLICIES = {"global": GLOBAL, "per corpus": PER_CORPUS, "rules and caps": RULES_AND_CAPS}
SOME = [Decimal(at) / 20 for at in range(21)]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SmallStore:
    return small_store(tmp_path_factory.mktemp("small"))


FRACTIONS = tuple(Decimal(at) / 100 for at in range(101))


def ledger_rows(small: SmallStore) -> list[dict]:
    return parquet.read(small.ledger.fetch("ledger.parquet")).to_pylist()


def steps(policy: Policy, fractions=FRACTIONS) -> list[Policy]:
    """The policy at these fractions: of every budget that it has."""
    return [at_fraction(policy, each, dict.fromkeys(policy.per_corpus, str(each))) for each in fractions]


def happened(version: Version) -> tuple[dict, dict]:
    """What a materialised version keeps, counted pair by pair: by dimension and group, and sums."""
    kept = pl.concat([version.kept(batch) for batch in version.batches()])
    counts = {}
    for name in ("corpus", *DIMENSIONS):
        group = pl.col("corpus") if name == "corpus" else group_of(name)
        counts |= {(name, value): n for value, n in kept.group_by(group.alias("group")).len().iter_rows()}
    sums = {"kept": kept.height, "reward": kept["reward"].cast(pl.Float64).sum(), "fit": kept["human_fit"].sum()}
    return counts, sums


def assert_same(outcome: Outcome, version: Version) -> None:
    counts, sums = happened(version)
    predicted = {(d, g): n for d, g, n in outcome.groups.select("dimension", "group", "kept").iter_rows() if n}
    assert predicted == counts
    assert outcome.kept == sums["kept"] == version.facts["kept"]
    cuts = version.cuts.select("budget", "n", "k", "kept", "short", "cut").to_dicts()
    assert [{name: row[name] for name in cuts[0]} for row in outcome.budgets] == cuts
    assert (outcome.mean_reward or 0) * outcome.kept == pytest.approx(sums["reward"], abs=1e-6)
    assert outcome.human_fit == pytest.approx(sums["fit"], rel=1e-5)


def compare(small: SmallStore, policy: Policy, fractions=SOME) -> None:
    version = small.filter(policy, move=False)
    rows, lists = ledger_rows(small), hand.Hand(version)
    tried = steps(policy, fractions)
    for single, of_curve, each in zip(
        [what_if(lists, each, most_domains=None) for each in tried],
        curve(lists, tried, most_domains=None),
        tried,
        strict=True,
    ):
        materialised = deciding.decide(small.store, rows, each)
        assert_same(single, materialised)
        assert_same(of_curve, materialised)


@pytest.mark.parametrize("name", POLICIES)
def test_what_if_equals_what_happens(small, name):
    compare(small, POLICIES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_what_if_equals_what_happens_at_101_fractions(small, name):
    compare(small, POLICIES[name], FRACTIONS)


def test_what_if_of_caps_that_the_version_does_not_have_equals_what_happens(small):
    version = small.filter(GLOBAL, move=False)
    for most in (1, 5, 1000):
        asked = GLOBAL.model_copy(update={"most_per_domain": most})
        assert_same(what_if(version, asked, most_domains=None), deciding.decide(small.store, ledger_rows(small), asked))


def test_what_if_of_a_cap_on_duplicates_equals_what_happens_and_needs_their_groups(small):
    version = small.filter(GLOBAL, move=False)
    asked = GLOBAL.model_copy(update={"most_per_duplicate_group": 1, "most_per_domain": 20})
    with pytest.raises(InputError, match="duplicate_groups"):
        what_if(version, asked)
    publish_groups(small.storage, 4)
    materialised = deciding.decide(small.store, ledger_rows(small), asked)
    assert set(materialised.capped["reason"]) == {"duplicate_cap", "domain_cap"}
    for fraction in SOME[::4]:
        other = at_fraction(asked, fraction)
        materialised = deciding.decide(small.store, ledger_rows(small), other)
        assert_same(what_if(version, other, most_domains=None), materialised)


def test_what_if_of_a_cap_on_clusters_equals_what_happens_and_needs_clusters_of_these_shards(tmp_path):
    small = small_store(tmp_path)
    version = small.filter(GLOBAL, move=False)
    asked = GLOBAL.model_copy(update={"most_per_semantic_cluster": 4, "most_per_domain": 3})
    with pytest.raises(InputError, match="Materialise semantic_clusters"):
        what_if(version, asked)
    small_clusters(small)
    for fraction in SOME[::4]:
        other = at_fraction(asked, fraction)
        materialised = deciding.decide(small.store, ledger_rows(small), other)
        assert_same(what_if(version, other, most_domains=None), materialised)
        assert set(materialised.capped["reason"]) == {"cluster_cap", "domain_cap"}
    fewer = small.filter(asked.model_copy(update={"most_per_semantic_cluster": 2}), move=False)
    assert_same(what_if(fewer, asked, most_domains=None), deciding.decide(small.store, ledger_rows(small), asked))
    small.land_more()
    with pytest.raises(InputError, match="those of another crawl"):
        deciding.decide(small.store, ledger_rows(small), asked)


def test_what_if_of_counts_equals_what_happens(small):
    version = small.filter(GLOBAL, move=False)
    for count in (0, 1, 57, 10_000):
        asked = Policy(keep_count=count, count_per_corpus={"shop": 3})
        assert_same(what_if(version, asked, most_domains=None), deciding.decide(small.store, ledger_rows(small), asked))


def test_pieces_that_are_read_do_not_matter(small, monkeypatch):
    monkeypatch.setattr(whatif, "_CHUNK", 7)
    compare(small, RULES_AND_CAPS, SOME[::4])


def test_small_domains_are_counted_together_and_nothing_is_lost(small):
    version = small.filter(RULES_AND_CAPS, move=False)
    whole = what_if(version, RULES_AND_CAPS, most_domains=None)
    for found in (
        what_if(version, RULES_AND_CAPS, most_domains=2),
        curve(version, [RULES_AND_CAPS], most_domains=2)[0],
    ):
        domains = found.groups.filter(dimension="domain")
        assert domains.height == 3
        assert whatif.OTHERS in domains["group"]
        for column in ("kept", "candidates"):
            assert domains[column].sum() == whole.groups.filter(dimension="domain")[column].sum()


def test_nothing_is_published_by_asking(small):
    version = small.filter(GLOBAL, move=False)
    before = [item.key for item in small.store.list()]
    what_if(version, at_fraction(GLOBAL, "0.77"))
    curve(version, steps(GLOBAL, SOME))
    assert [item.key for item in small.store.list()] == before


@pytest.mark.parametrize(
    "other",
    [
        {"reward_floor": 0.0},
        {"floors": {"human_fit": 0.5}},
        {"caption_patterns": ("x",)},
        {"sampling": RULES_AND_CAPS.sampling},
    ],
)
def test_a_policy_with_other_rules_is_refused_by_name(small, other):
    version = small.filter(GLOBAL, move=False)
    with pytest.raises(InputError, match=next(iter(other))):
        what_if(version, GLOBAL.model_copy(update=other))


def test_a_curve_of_policies_that_are_not_nested_is_refused(small):
    version = small.filter(GLOBAL, move=False)
    with pytest.raises(InputError, match="keeping what the one before it keeps"):
        curve(version, steps(GLOBAL, [Decimal("0.5"), Decimal("0.2")]))
    with pytest.raises(InputError, match="same caps"):
        curve(version, [GLOBAL, GLOBAL.model_copy(update={"most_per_domain": 1})])


def test_a_fraction_of_a_named_budget_leaves_the_others():
    assert of_budget(PER_CORPUS, "shop", "0.5").per_corpus == {"shop": Decimal("0.5")}
    assert of_budget(PER_CORPUS, "shop", "0.5").keep_fraction == Decimal("0.3")
    assert of_budget(PER_CORPUS, "*", "0.5").per_corpus == PER_CORPUS.per_corpus
    counted = Policy(keep_count=3, count_per_corpus={"shop": 3})
    assert at_fraction(counted, "0.2", {"shop": "0.1"}) == Policy(keep_fraction="0.2", per_corpus={"shop": "0.1"})


def _bin_edge_off_by_one(monkeypatch):
    right = whatif._threshold
    monkeypatch.setattr(whatif, "_threshold", lambda above, bits: right(above, bits) - 1)


def _ties_ignored(monkeypatch):
    """Everything with the reward of the last kept pair, as a filter by a threshold keeps it."""

    def by_threshold(segments, k):
        cut = right(segments, k)
        if cut.last is None:
            return cut
        bound = whatif.bins(np.array([-cut.last[0]], np.float32))[0]
        taken = [int(segment.counts[segment.bins >= bound].sum()) for segment in segments]
        return replace(cut, taken=taken, kept=sum(taken))

    right = hand.find_cut
    monkeypatch.setattr(hand, "find_cut", by_threshold)


def _caps_forgotten(monkeypatch):
    monkeypatch.setattr(hand.Hand, "capped", lambda self, policy: self.version.capped.clear())


def _capped_pairs_counted(monkeypatch):
    monkeypatch.setattr(Rows, "at", lambda rows, places: rows.slice(0, 0))


@pytest.mark.parametrize(
    "plant",
    [_bin_edge_off_by_one, _ties_ignored, _caps_forgotten, _capped_pairs_counted],
    ids=lambda plant: plant.__name__,
)
def test_the_planted_bug_turns_the_comparison_red(small, monkeypatch, plant):
    version, rows = small.filter(RULES_AND_CAPS, move=False), ledger_rows(small)
    truth = [deciding.decide(small.store, rows, each) for each in steps(RULES_AND_CAPS, SOME)]
    assert version.capped.height
    plant(monkeypatch)

    def compare_all() -> None:
        for each, materialised in zip(steps(RULES_AND_CAPS, SOME), truth, strict=True):
            assert_same(what_if(version, each, most_domains=None), materialised)

    with pytest.raises(AssertionError):
        compare_all()


def test_caps_are_not_worked_out_again_for_every_fraction(small, monkeypatch):
    version = small.filter(GLOBAL, move=False)
    asked, ran = [], caps.capped
    monkeypatch.setattr(caps, "capped", lambda *given: asked.append(1) or ran(*given))
    curve(version, steps(GLOBAL.model_copy(update={"most_per_domain": 3}), SOME))
    assert len(asked) == 1
