"""`cascade_plan`: from which reward of a cheap model on a pair is worth a pass of the promoted one.

Nothing starts it by itself, and it decides nothing unless it says `adopt` or `off`. What does not belong here: the
arithmetic (`scoring/cascade.py`, `scoring/planning.py`), scoring with two models (`scoring/cascaded.py`).
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from assets import keys
from assets.cuts import cuts_in_force
from assets.needs import SCORING
from assets.reporting import PLOT, materialized
from assets.shadow_report import score_drawn
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.live import IndexedShard, indexed_shards
from compalign_dagster.crawl.shards import corpus_of
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.markdown import inert
from compalign_dagster.markdown import table as markdown_table
from compalign_dagster.reward import promoted
from compalign_dagster.reward.manifest import MANIFEST, verified
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.scoring import in_force, tables
from compalign_dagster.scoring.cascade import BOUND, Plan, together
from compalign_dagster.scoring.in_force import AUDIT, Cascade
from compalign_dagster.scoring.planning import CODE_VERSION, SAMPLE
from compalign_dagster.selection.in_force import in_force_or
from compalign_dagster.selection.policy import Policy
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store
from compalign_dagster.versions import canonical_json, work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

if TYPE_CHECKING:
    from compalign_dagster.scoring.planning import Budget

KIND = keys.CASCADE_PLAN.to_user_string()
PAIRS = 3000
_IMPORTED = "cheap_model"


class Planning(dg.Config):
    """Which cheap model, on how much of the crawl, and whether the plan comes into force."""

    cheap: str | None = Field(
        None, description="Beginning of a trained model's version, or a model folder of `compalign train`."
    )
    pairs: int = Field(PAIRS, ge=1, description="Pairs of each budget that are drawn and scored by both models.")
    bound: float = Field(BOUND, ge=0, le=1, description="Share of decisions that may differ from full scoring.")
    audit: float = Field(
        AUDIT, ge=0, le=1, description="Share of what is turned down that is scored all the same, once in force."
    )
    adopt: bool = Field(False, description="Put the plan in force for batches that are scored from here on.")
    off: bool = Field(False, description="Put no cascade in force; plans nothing.")
    reason: str = Field("no reason given", description="Why: a sentence for those who read the history.")
    by: str | None = Field(None, description="Who decides; the user that runs this process if unset.")


@dg.asset(
    key=keys.CASCADE_PLAN,
    deps=[keys.RAW_CRAWL, keys.PROMOTED_MODEL],
    group_name=keys.REFEREE_GROUP,
    owners=keys.OWNERS,
    kinds={"json", "parquet"},
    code_version=str(CODE_VERSION),
    pool=SCORING.dagster_pool(),
    op_tags=SCORING.k8s_op_tags(),
)
def cascade_plan(
    config: Planning, storage: Storage, accelerator: Accelerator, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult:
    """How many passes of the promoted model a cheap one could save, and at how many wrong decisions.

    Made on a random sample of the crawl that both have scored. Off until a plan is adopted (docs/scoring.md).
    """
    store, reason = storage.store, Reason.given(config.by, config.reason)
    if config.off and config.adopt:
        raise InputError(
            "configuration of cascade_plan",
            expected="adopt or off",
            found="both",
            remedy="Leave one of them out.",
        )
    if config.off:
        in_force.turn_off(store, by=reason.by, why=reason.why)
        return _result(latest.require(store, KIND), storage, reused=True, audit=config.audit)
    artifact, reused = publish_plan(storage, accelerator, settings, config)
    if config.adopt:
        adopt(artifact, config.audit, reason)
    return _result(artifact, storage, reused=reused, audit=config.audit)


def publish_plan(
    storage: Storage, accelerator: Accelerator, settings: Settings, config: Planning
) -> tuple[Artifact, bool]:
    """The plans for the crawl, the policy and the promoted model as they are, one for each budget."""
    store = storage.store
    model = promoted.promoted(store)
    cheap = _cheap(store, config.cheap, model)
    shards = indexed_shards(store)
    if not shards:
        raise CompalignError(
            f"crawl in {store.url}",
            expected="at least one indexed shard to draw a sample from",
            found="none",
            remedy="Land and index a batch first.",
        )
    policy = in_force_or(store, Policy(keep_fraction=settings.keep_fraction, per_corpus=dict(settings.keep_per_corpus)))
    budgets = _budgets(store, shards, policy, model)
    choice = {
        **accelerator.changes_bytes(),
        "scoring": tables.CODE_VERSION,
        "pairs": config.pairs,
        "bound": config.bound,
        "seed": settings.seed,
        "fractions": {name: [budget.fraction, repr(budget.cut)] for name, budget in budgets.items()},
    }
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[
            model.facts["model_version"],
            cheap.facts["model_version"],
            [[item.shard, item.index_version] for item in shards],
        ],
        config=choice,
    )

    def make() -> Artifact:
        table, plans, time = _plan(storage, accelerator, (cheap, model), shards, budgets, config, settings.seed)
        report = _report(plans, time, shards, policy, (cheap, model))
        with tempfile.TemporaryDirectory() as folder:
            return artifacts.publish(
                store,
                KIND,
                key,
                {
                    "sample.parquet": parquet.write(table, Path(folder, "sample.parquet")),
                    "plans.json": canonical_json({name: made.as_dict() for name, made in plans.items()}),
                },
                code_version=CODE_VERSION,
                inputs=[model.as_input(), cheap.as_input()],
                config=choice,
                facts={"report": report, "sampled": table.num_rows},
                views={PLOT: _picture(table, plans)},
            )

    return latest.reuse_or_make(store, KIND, key, make)


def adopt(plan: Artifact, audit: float, reason: Reason) -> None:
    """Put a plan in force; one that says not to use a cascade turns off whatever is."""
    report = plan.facts["report"]
    if not report["reject_below"]:
        why = "; ".join(f"{name}: {made['reason']}" for name, made in report["plans"].items())
        in_force.turn_off(plan.store, by=reason.by, why=f"{reason.why} ({why})")
        return
    cascade = Cascade(report["cheap"], report["cheap_version"], report["reject_below"], audit)
    scores, bound = report["model_version"], plan.manifest["config"]["bound"]
    in_force.adopt(plan.store, cascade, plan, scores=scores, bound=bound, by=reason.by, why=reason.why)


def _cheap(store: Store, given: str | None, model: Artifact) -> Artifact:
    """The cheap model: one that was trained in this store, or a folder, which is published here first."""
    if given is None:
        raise InputError(
            "configuration of cascade_plan",
            expected="a cheap model, as `cheap`",
            found="none",
            remedy="Give the beginning of a trained model's version, or a model folder of `compalign train`.",
        )
    found = _imported(store, Path(given)) if Path(given, MANIFEST).is_file() else promoted.candidate(store, given)
    if found.facts["model_version"] == model.facts["model_version"]:
        raise InputError(
            f"cheap model {given!r}",
            expected="another model than the promoted one",
            found="that one",
            remedy="Train a smaller one, such as COMPALIGN_BACKBONE=offline.",
        )
    return found


def _imported(store: Store, folder: Path) -> Artifact:
    manifest = verified(folder)
    key = work_key(_IMPORTED, code_version=1, inputs=[manifest.model_version], config={})
    found = artifacts.find(store, _IMPORTED, key)
    return found or artifacts.publish(
        store,
        _IMPORTED,
        key,
        {name: folder / name for name in (MANIFEST, *manifest.files)},
        code_version=1,
        inputs=[],
        config={},
        facts={"model_version": manifest.model_version, "backbone": manifest.backbone},
    )


def _budgets(store: Store, shards: list[IndexedShard], policy: Policy, model: Artifact) -> dict[str, "Budget"]:
    """The policy's budgets that have pairs, with the last cut where this model and policy made it."""
    from compalign_dagster.scoring.planning import Budget
    from compalign_dagster.scoring.sampling import Source

    last = cuts_in_force(store)
    same = last is not None and last.model_version == model.facts["model_version"]
    cuts = last.by_budget if last and same and Policy.model_validate(last.policy) == policy else {}
    found = {}
    for name, items in _by_budget(shards, policy).items():
        pairs = sum(item.pairs for item in items)
        if pairs:
            sources = [Source(item.shard, store.fetch(item.pairs_key)) for item in items]
            found[name] = Budget(sources, policy.count_of(name, pairs) / pairs, cuts.get(name))
    return found


def _by_budget(shards: list[IndexedShard], policy: Policy) -> dict[str, list[IndexedShard]]:
    found: dict[str, list[IndexedShard]] = {}
    for item in shards:
        found.setdefault(policy.budget_of(corpus_of(item.shard)), []).append(item)
    return dict(sorted(found.items()))


def _plan(
    storage: Storage,
    accelerator: Accelerator,
    models: tuple[Artifact, Artifact],
    shards: list[IndexedShard],
    budgets: Mapping[str, "Budget"],
    config: Planning,
    seed: int,
) -> tuple[pa.Table, dict[str, Plan], float | None]:
    """The sample with both rewards, a plan for each budget, and the cheap model's time as a share of the other's."""
    import numpy as np

    from compalign_dagster.scoring.planning import draw, plan_budgets, scored

    sample, names = draw(budgets, config.pairs, seed=seed)
    (cheap, cheap_seconds, _), (reward, seconds, _) = (
        score_drawn(storage, accelerator, model, sample, shards) for model in models
    )
    table = scored(sample, names, cheap, reward)
    time = cheap_seconds / seconds if seconds and np.isfinite(reward).any() else None
    return table, plan_budgets(table, budgets, bound=config.bound), time


def _report(
    plans: Mapping[str, Plan],
    time: float | None,
    shards: list[IndexedShard],
    policy: Policy,
    models: tuple[Artifact, Artifact],
) -> dict[str, Any]:
    """What `adopt`, people and checks need: thresholds by corpus, and figures of the whole crawl."""
    cheap, model = models
    by_budget = _by_budget(shards, policy)
    pairs = {name: sum(item.pairs for item in by_budget[name]) for name in plans}
    passes, wrong = together(plans, pairs)
    return {
        "model_version": model.facts["model_version"],
        "cheap": cheap.manifest_key,
        "cheap_version": cheap.facts["model_version"],
        "plans": {name: made.as_dict() for name, made in plans.items()},
        "reject_below": {
            corpus: made.reject_below
            for name, made in plans.items()
            for corpus in sorted({corpus_of(item.shard) for item in by_budget[name]})
            if made.reject_below is not None
        },
        "pairs": sum(pairs.values()),
        "passes": passes,
        "wrong": wrong.as_dict(),
        "time": None if time is None else passes + time,
    }


def _picture(table: pa.Table, plans: Mapping[str, Plan]) -> bytes:
    from compalign_dagster.pages.cascade import plan_picture

    both = [row for row in table.to_pylist() if row["cheap"] is not None and row["reward"] is not None]
    points = {name: [row for row in both if row["budget"] == name] for name in plans}
    return plan_picture(
        {
            name: ([row["cheap"] for row in rows], [row["reward"] for row in rows], plans[name].reject_below)
            for name, rows in points.items()
        }
    )


def _result(artifact: Artifact, storage: Storage, *, reused: bool, audit: float) -> dg.MaterializeResult:
    report = artifact.facts["report"]
    _, said = in_force.applied(storage.store, promoted.promoted(storage.store).facts["model_version"])
    wrong = report["wrong"]
    shown = {
        "in_force": said,
        "passes": report["passes"],
        "wrong_decisions": wrong["value"],
        "wrong_decisions_at_most": wrong["high"],
        "time_of_full_scoring": report["time"],
        "audited_rejects_of_the_crawl": round(audit * (1 - report["passes"]) * report["pairs"]),
        "cheap_model": report["cheap_version"],
        "model_version": report["model_version"],
        "plans": dg.MetadataValue.md(_plans_table(report["plans"])),
    }
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=artifact.facts["sampled"],
        schema=SAMPLE,
        metadata={name: value for name, value in shown.items() if value is not None},
    )


def _plans_table(plans: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            inert(name),
            f"{made['fraction']:.2%}",
            "-" if made["reject_below"] is None else f"{made['reject_below']:.4f}",
            f"{made['passes']:.1%}",
            f"{made['wrong']['value']:.2%}, at most {made['wrong']['high']:.2%}",
            inert(made["reason"]),
        )
        for name, made in plans.items()
    ]
    return markdown_table(("budget", "kept", "turned down below", "passes", "decisions that differ", "why"), rows)
