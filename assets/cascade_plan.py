"""`cascade_plan`: from which reward of a cheap model on a pair is worth a pass of the promoted one.

Nothing starts it by itself, and it decides nothing unless it says `adopt` or `off`. What does not belong here: the
arithmetic (`scoring/cascade.py`, `scoring/planning.py`), scoring with two models (`scoring/cascaded.py`).
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from assets import keys
from assets.drawn import FRAME, scene, score_drawn
from assets.reporting import PLOT, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import InputError
from compalign_dagster.markdown import inert
from compalign_dagster.markdown import table as markdown_table
from compalign_dagster.pages.cascade import plan_picture
from compalign_dagster.reward import promoted
from compalign_dagster.reward.manifest import MANIFEST
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.scoring import in_force, tables
from compalign_dagster.scoring.cascade import BOUND, Plan
from compalign_dagster.scoring.in_force import AUDIT
from compalign_dagster.scoring.planning import CODE_VERSION, SAMPLE, budgets_of, by_budget, plan_crawl, report_on
from compalign_dagster.selection.cuts import cuts_in_force
from compalign_dagster.selection.policy import Policy
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store
from compalign_dagster.versions import canonical_json, work_key
from resources.accelerator import Accelerator
from resources.storage import Storage

KIND = keys.CASCADE_PLAN.to_user_string()
PAIRS = 3000


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
    adopt: bool = Field(False, description="Put the plan in force for all that has no rewards of this model yet.")
    off: bool = Field(False, description="Put no cascade in force; plans nothing.")
    reason: str = Field("no reason given", description="Why: a sentence for those who read the history.")
    by: str | None = Field(None, description="Who decides; the user that runs this process if unset.")


@dg.asset(
    key=keys.CASCADE_PLAN,
    deps=[keys.RAW_CRAWL, keys.PROMOTED_MODEL],
    kinds={"json", "parquet"},
    code_version=str(CODE_VERSION),
    **FRAME,
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
        artifact, reused = latest.require(store, KIND), True  # first: what fails decides nothing
        in_force.turn_off(store, by=reason.by, why=reason.why)
    else:
        artifact, reused = publish_plan(storage, accelerator, settings, config)
    if config.adopt:
        in_force.adopt_plan(artifact, config.audit, by=reason.by, why=reason.why)
    return _result(artifact, storage, reused=reused, audit=None if config.off else config.audit)


def publish_plan(
    storage: Storage, accelerator: Accelerator, settings: Settings, config: Planning
) -> tuple[Artifact, bool]:
    """The plans for the crawl, the policy and the promoted model as they are, one for each budget."""
    store = storage.store
    model = promoted.promoted(store)
    cheap = _cheap(store, config.cheap, model)
    shards, policy = scene(store, settings)
    budgets = budgets_of(store, shards, policy.budget_of, policy.count_of, _last_cuts(store, policy, model))
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
        score = partial(score_drawn, storage, accelerator, shards=shards)
        models = partial(score, cheap), partial(score, model)
        table, plans, time = plan_crawl(budgets, *models, size=config.pairs, seed=settings.seed, bound=config.bound)
        report = report_on(plans, time, by_budget(shards, policy.budget_of), cheap, model)
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


def _cheap(store: Store, given: str | None, model: Artifact) -> Artifact:
    """The cheap model: one that was trained in this store, or a folder, which is published here first."""
    if given is None:
        raise InputError(
            "configuration of cascade_plan",
            expected="a cheap model, as `cheap`",
            found="none",
            remedy="Give the beginning of a trained model's version, or a model folder of `compalign train`.",
        )
    found = (
        promoted.imported(store, Path(given)) if Path(given, MANIFEST).is_file() else promoted.candidate(store, given)
    )
    if found.facts["model_version"] == model.facts["model_version"]:
        raise InputError(
            f"cheap model {given!r}",
            expected="another model than the promoted one",
            found="that one",
            remedy="Train a smaller one, such as COMPALIGN_BACKBONE=offline.",
        )
    return found


def _last_cuts(store: Store, policy: Policy, model: Artifact) -> Mapping[str, float]:
    """The cuts in force, where this model and policy made them."""
    last = cuts_in_force(store)
    same = last is not None and last.model_version == model.facts["model_version"]
    return last.by_budget if last and same and Policy.model_validate(last.policy) == policy else {}


def _picture(table: pa.Table, plans: Mapping[str, Plan]) -> bytes:
    both = [row for row in table.to_pylist() if row["cheap"] is not None and row["reward"] is not None]
    points = {name: [row for row in both if row["budget"] == name] for name in plans}
    return plan_picture(
        {
            name: ([row["cheap"] for row in rows], [row["reward"] for row in rows], plans[name].reject_below)
            for name, rows in points.items()
        }
    )


def _result(artifact: Artifact, storage: Storage, *, reused: bool, audit: float | None) -> dg.MaterializeResult:
    """`audit` is the share of rejects that would be scored all the same; None where no cascade is to be used."""
    report = artifact.facts["report"]
    now = in_force.applied(storage.store, promoted.promoted(storage.store).facts["model_version"])
    wrong = report["wrong"]
    audited = None if audit is None else round(audit * (1 - report["passes"]) * report["pairs"])
    shown = {
        "in_force": now.said,
        "passes": report["passes"],
        "wrong_decisions": wrong["value"],
        "wrong_decisions_at_most": wrong["high"],
        "time_of_full_scoring": report["time"],
        "audited_rejects_of_the_crawl": audited,
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
