"""`shadow_report`: what the newest reward model would do to the crawl, before anyone promotes it."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from assets import keys
from assets.drawn import FRAME, scene, score_drawn
from assets.reporting import PAGE, PLOT, PREVIEW, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import IndexedShard
from compalign_dagster.crawl.shards import corpus_of
from compalign_dagster.reward import promoted
from compalign_dagster.scoring import tables
from compalign_dagster.scoring.shadow import CODE_VERSION
from compalign_dagster.selection.policy import REST, Policy
from compalign_dagster.settings import Settings
from compalign_dagster.versions import work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

if TYPE_CHECKING:
    from compalign_dagster.scoring.sampling import Sample

KIND = keys.SHADOW_REPORT.to_user_string()
PAIRS = 2000
_SHOWN = 24  # pictures of each gallery


class Shadow(dg.Config):
    """Which model, and how much of the crawl it is tried on."""

    model: str | None = Field(None, description="Beginning of a model version; the newest model if unset.")
    pairs: int = Field(PAIRS, ge=1, description="Pairs of the crawl that are drawn and scored.")


@dg.asset(
    key=keys.SHADOW_REPORT,
    deps=[keys.REWARD_MODEL, keys.SCORE_LEDGER],
    kinds={"html", "parquet"},
    code_version=str(CODE_VERSION),
    **FRAME,
)
def shadow_report(
    config: Shadow, storage: Storage, accelerator: Accelerator, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult:
    """A candidate beside the promoted model on a stratified sample of the crawl: nothing is decided here.

    How ranks change, which pairs would enter and leave the dataset, and what a full re-score costs.
    """
    from compalign_dagster.scoring.shadow import SAMPLE, summary

    model = promoted.candidate(storage.store, config.model)
    artifact, reused = publish_shadow(storage, accelerator, settings, model, pairs=config.pairs)
    report = artifact.facts["report"]
    figures = ("spearman", "kendall_tau_b", "kept_overlap")
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=report["sampled"],
        schema=SAMPLE,
        metadata={
            "candidate": report["candidate"],
            "promoted": report["promoted"] or "none yet",
            **{name: report[name]["value"] for name in figures if (report.get(name) or {}).get("value") is not None},
            **({"hours of a full re-score": report["cost"]["hours"]} if report["cost"]["hours"] is not None else {}),
            "summary": dg.MetadataValue.text("\n".join(summary(report))),
        },
    )


def publish_shadow(
    storage: Storage, accelerator: Accelerator, settings: Settings, model: Artifact, *, pairs: int = PAIRS
) -> tuple[Artifact, bool]:
    """The report on `model` against the promoted one, over the crawl and the policy as they are now."""
    store = storage.store
    now = promoted.in_force(store)
    other = promoted.promoted(store) if now else None
    shards, policy = scene(store, settings)
    scores = _scores_of(store, other)
    choice = {
        **accelerator.changes_bytes(),
        "scoring": tables.CODE_VERSION,
        "pairs": pairs,
        "seed": settings.seed,
        "policy": policy.model_dump(mode="json"),
    }
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[
            model.facts["model_version"],
            other.facts["model_version"] if other else None,
            [[item.shard, item.index_version, scores.get(item.shard, {}).get("data_version")] for item in shards],
        ],
        config=choice,
    )

    def make() -> Artifact:
        sample = _sample(storage, shards, scores, pairs, settings.seed)
        table, report = _report(storage, accelerator, model, other, sample, shards, policy, settings.seed)
        report["policy"] = choice["policy"]
        with tempfile.TemporaryDirectory() as folder:
            return artifacts.publish(
                store,
                KIND,
                key,
                {"sample.parquet": parquet.write(table, Path(folder, "sample.parquet"))},
                code_version=CODE_VERSION,
                inputs=[item.as_input() for item in (model, other) if item is not None],
                config=choice,
                facts={"report": report},
                views=_views(storage, table, report),
            )

    return latest.reuse_or_make(store, KIND, key, make)


def _scores_of(store: artifacts.Store, model: Artifact | None) -> dict[str, dict[str, Any]]:
    """The ledger's rows of the promoted model, by shard; none before the first scoring, nor after a cascade.

    What a cascade turned down has no reward: ranks among the others do not stand for ranks in the crawl.
    """
    ledger = latest.latest(store, keys.SCORE_LEDGER.to_user_string())
    if ledger is None or model is None:
        return {}
    rows = parquet.read(ledger.fetch("ledger.parquet")).to_pylist()
    found = {row["shard"]: row for row in rows if row["model_version"] == model.facts["model_version"]}
    return {} if any(row.get("rejected_key") for row in found.values()) else found


def _sample(
    storage: Storage, shards: list[IndexedShard], scores: Mapping[str, dict[str, Any]], pairs: int, seed: int
) -> "Sample":
    """Pairs drawn from shards whose scores are of the index that is in force."""
    from compalign_dagster.scoring.sampling import Source, draw_sample

    store, sources = storage.store, []
    for item in shards:
        row = scores.get(item.shard)
        scored = row is not None and row["index_version"] == item.index_version
        path = store.fetch(row["scores_key"]) if row is not None and scored else None
        sources.append(Source(item.shard, store.fetch(item.pairs_key), path))
    return draw_sample(sources, pairs, seed=seed)


def _report(
    storage: Storage,
    accelerator: Accelerator,
    model: Artifact,
    other: Artifact | None,
    sample: "Sample",
    shards: list[IndexedShard],
    policy: Policy,
    seed: int,
) -> tuple[pa.Table, dict[str, Any]]:
    """The sample with rewards, and the figures."""
    import numpy as np

    from compalign_dagster.scoring.shadow import compare, cost_of_rescoring

    scored, seconds, refused = score_drawn(storage, accelerator, model, sample, shards)
    rewards = None
    if other is not None:
        rewards = sample.promoted
        if np.isnan(rewards).all():  # nothing is scored by it yet
            rewards, _, _ = score_drawn(storage, accelerator, other, sample, shards)
    table, facts = compare(sample, scored, rewards, _fractions(policy, shards), seed=seed)
    in_crawl = sum(item.pairs for item in shards)
    return table, {
        **facts,
        "candidate": model.facts["model_version"],
        "promoted": other.facts["model_version"] if other else None,
        "population": sample.population,
        "sampled": table.num_rows,
        "strata": sample.strata,
        "refused": refused,
        "device": accelerator.pick(),
        "cost": cost_of_rescoring(in_crawl, seconds, int(np.isfinite(scored).sum())),
    }


def _fractions(policy: Policy, shards: list[IndexedShard]) -> dict[str, float]:
    """The share that the policy keeps of each budget; of a count, its share of the indexed pairs."""
    pairs = Counter({REST: 0})
    for item in shards:
        pairs[policy.budget_of(corpus_of(item.shard))] += item.pairs
    for budget in (*policy.per_corpus, *policy.count_per_corpus):
        pairs[budget] += 0
    found = {}
    for budget, n in pairs.items():
        fraction = policy.fraction_of(budget)
        found[budget] = float(fraction) if fraction is not None else policy.count_of(budget, n) / max(n, 1)
    return found


def _views(storage: Storage, table: pa.Table, report: dict[str, Any]) -> dict[str, bytes]:
    """The page with a contact sheet of what would enter and leave."""
    from compalign_dagster.pages.cards import Card
    from compalign_dagster.pages.images import contact_sheet
    from compalign_dagster.pages.pictures import pictures
    from compalign_dagster.pages.shadow import rewards_picture, shadow_page
    from compalign_dagster.scoring.shadow import galleries

    cards = {}
    for name, rows in galleries(table, _SHOWN).items():
        images = pictures(storage.landing, rows)
        cards[name] = [
            Card(image, row["caption"], row["reward_candidate"], f"{row['pair_id']} · {row['shard']} {row['key']}")
            for image, row in zip(images, rows, strict=True)
        ]
    sheet = [card.image for found in cards.values() for card in found]
    return {
        PAGE: shadow_page(report, cards),
        PLOT: rewards_picture(report),
        **({PREVIEW: contact_sheet(sheet, columns=8)} if sheet else {}),
    }
