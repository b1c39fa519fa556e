"""Which audited rejects count, for how much, and what their plans allow: batches under different cascades."""

import numpy as np
import pytest

from compalign_dagster import artifacts, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.scoring.auditing import judged
from compalign_dagster.scoring.cascade import Drawn, audit
from compalign_dagster.scoring.in_force import Cascade
from compalign_dagster.scoring.tables import AUDITED, LEDGER
from compalign_dagster.store import LocalStore

MODEL = "m" * 64
PAIRS = 10_000


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def batch(store, name: str, rewards: list[float], *, share: float, bound: float | None, shard="web/0.tar") -> Artifact:
    """Scores of a batch of one shard, whose audited rejects have these rewards."""
    place = {"pair_id": "0" * 32, "shard": f"{shard}-{name}", "key": "k", "corpus": "web", "cheap": -1.0}
    table = parquet.from_rows([{**place, "caption_index": at, "reward": it} for at, it in enumerate(rewards)], AUDITED)
    path = parquet.write(table, store.path(f"{name}.parquet"))
    facts = {"model_version": MODEL, **({} if bound is None else {"bound": bound})}
    return artifacts.publish(
        store,
        "scored_shards",
        name * 8,
        {"audited.parquet": path},
        code_version=1,
        inputs=[],
        config=Cascade("cheap", "c" * 64, {"web": 0.0}, share).as_config(),
        facts=facts,
        partition=name,
    )


def ledger(store, batches: list[tuple[Artifact, int]]) -> Artifact:
    """A ledger of these batches and how many pairs each has turned down, of PAIRS."""
    rows = [
        {
            **dict.fromkeys(LEDGER.names, "-"),
            "shard": f"web/0.tar-{made.partition}",
            "batch": made.partition,
            "model_version": MODEL,
            "pairs": PAIRS,
            "scored": PAIRS - rejected,
            "quarantined": 0,
            "rejected": rejected,
            "rejected_key": "there",
        }
        for made, rejected in batches
    ]
    path = parquet.write(parquet.from_rows(rows, LEDGER), store.path("ledger.parquet"))
    inputs = [made.as_input() for made, _ in batches]
    return artifacts.publish(
        store, "score_ledger", "l" * 32, {"ledger.parquet": path}, code_version=1, inputs=inputs, config={}, facts={}
    )


def test_batches_that_were_audited_unlike_are_judged_apart(store):
    """Of the second, a hundredth was audited and all of it is wrong: a thousand pairs, among few audited ones."""
    dense = batch(store, "aaaa", [-1.0] * 900, share=0.1, bound=0.01)
    thin = batch(store, "bbbb", [1.0] * 10, share=0.01, bound=0.01)
    found, _ = judged(ledger(store, [(dense, 9000), (thin, 1000)]), MODEL, lambda corpus: 0.0)
    assert found.wrong.value == pytest.approx(2 * 1000 / (2 * PAIRS))
    assert not found.passed


def test_batches_of_one_share_are_one_sample(store):
    made = [(batch(store, name * 4, [-1.0] * 50, share=0.1, bound=0.01), 500) for name in "ab"]
    found, _ = judged(ledger(store, made), MODEL, lambda corpus: 0.0)
    assert found.wrong.n == 100
    assert found == audit([Drawn(1000, 100, 0)], pairs=2 * PAIRS, bound=0.01)


def test_the_bound_is_that_of_the_strictest_plan_that_made_rejects_and_not_of_a_later_one(store):
    made = [
        (batch(store, "aaaa", [-1.0] * 50, share=0.1, bound=0.02), 500),
        (batch(store, "bbbb", [-1.0] * 50, share=0.1, bound=0.3), 500),
    ]
    assert judged(ledger(store, made), MODEL, lambda corpus: 0.0)[1] == 0.02


def test_rejects_of_a_batch_that_is_lost_are_counted_and_nothing_is_known_of_them(store):
    kept = batch(store, "aaaa", [-1.0] * 900, share=0.1, bound=0.01)
    gone = batch(store, "bbbb", [-1.0] * 900, share=0.1, bound=0.01)
    made = ledger(store, [(kept, 9000), (gone, 9000)])
    assert judged(made, MODEL, lambda corpus: 0.0)[0].passed
    store.path(gone.manifest_key).unlink()
    assert not judged(made, MODEL, lambda corpus: 0.0)[0].passed


def test_another_models_rows_and_corpora_without_a_cut_take_no_part(store):
    made = ledger(store, [(batch(store, "aaaa", [-1.0], share=0.1, bound=0.01), 10)])
    assert judged(made, "n" * 64, lambda corpus: 0.0) is None
    assert judged(made, MODEL, lambda corpus: None) is None
    assert judged(made, MODEL, lambda corpus: -np.inf)[0].wrong.value == pytest.approx(2 * 10 / PAIRS)
