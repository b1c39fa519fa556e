"""`filtered_dataset`: exactly k pairs by the policy in force, why each other one was dropped, `current`."""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from assets import keys
from assets.checks import cascade
from assets.checks import filtered_dataset as checks
from assets.judged import crawl_shards
from assets.reporting import claim, code, column_lineage, linked_counts, materialized
from compalign_dagster import latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage import takedown
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection import current, deciding, policy_file
from compalign_dagster.selection.deciding import CODE_VERSION
from compalign_dagster.selection.in_force import PolicyInForce, adopt, first_policy, in_force
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.tables import RANKED
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.whatif import what_if
from compalign_dagster.settings import Settings
from resources.storage import Storage

KIND = keys.FILTERED_DATASET.to_user_string()
_BUDGETS_SHOWN = 50
_MOST_ROWS_COMPARED = 5_000_000  # of ranked lists, for the page of what changed: seconds
_COLUMNS = {  # of the ranked lists: the asset and column that each is copied or made from
    **{name: (keys.SCORED_SHARDS, name) for name in ("pair_id", "shard", "key", "caption_index", "corpus")},
    **{name: (keys.SCORED_SHARDS, name) for name in ("reward", "human_fit")},
    **{name: (keys.RAW_CRAWL, name) for name in ("image_offset", "image_length", "caption_characters")},
    **{name: (keys.RAW_CRAWL, name) for name in ("width", "height")},
    "domain": (keys.RAW_CRAWL, "url"),
    "reason": (keys.SCORED_SHARDS, "reward"),
}

log = logging.getLogger(f"compalign_dagster.{__name__}")


class SelectionConfig(dg.Config):
    """Launchpad overrides. A changed policy makes a trial that leaves `current` alone, unless adopted."""

    keep_fraction: str | None = Field(None, description="Keep fraction to try, such as 0.2.")
    keep_per_corpus: dict[str, str] | None = Field(None, description="Keep fractions of named corpora to try.")
    policy: dict[str, Any] = Field(
        {}, description="Other fields of the policy to try, such as `most_per_domain: 1000`; the rest is as in force."
    )
    adopt: bool = Field(False, description="Put the tried policy in force and move `current`.")
    why: str = Field("adopted in the launchpad", description="Why it is adopted; recorded.")
    reshard: bool = Field(False, description="Also write the kept pairs as new webdataset tars.")


@dg.asset(
    key=keys.FILTERED_DATASET,
    deps=[keys.SCORE_LEDGER],
    group_name=keys.DATASET_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet", "webdataset"},
    code_version=str(CODE_VERSION),
    check_specs=[
        dg.AssetCheckSpec(
            "exactly_k_are_kept_and_every_other_pair_has_a_reason",
            asset=keys.FILTERED_DATASET,
            blocking=True,
            description="pairs = kept + dropped + quarantined; kept is exactly the policy's count; all rows.",
        ),
        *checks.SPECS,
        cascade.SPEC,
    ],
)
def filtered_dataset(
    config: SelectionConfig, storage: Storage, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult:
    """The compact, well-aligned training set: a cut, and how much of each batch's ranked list lies above it.

    One model's rewards, by the selection policy in force. `current` moves last.
    """
    policy, trial = _policy(storage, settings, config)
    ledger, ledger_version = latest.numbered(storage.store, keys.SCORE_LEDGER.to_user_string())
    artifact, reused = publish_dataset(storage, settings, policy, ledger, reshard=config.reshard)
    results = [
        claim("exactly_k_are_kept_and_every_other_pair_has_a_reason", unaccounted(artifact.facts, policy.policy)),
        checks.dataset_meets_expectations(artifact),
        checks.lineage_verifies(artifact),
        checks.groups_are_kept_alike(artifact, settings.least_group_share),
    ]
    moved = False
    if not trial and all(result.passed for result in results if result.severity == dg.AssetCheckSeverity.ERROR):
        moved = current.move(artifact, policy=policy.version, ledger=ledger_version)
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=artifact.facts["kept"],
        schema=RANKED,
        metadata={
            **_told(artifact, storage),
            "trial": dg.MetadataValue.bool(trial),
            "current": dg.MetadataValue.bool(moved),
            "policy_version": policy.version,
        },
        checks=[*results, cascade.changes_few_decisions(artifact)],
    )


def _told(artifact: Artifact, storage: Storage) -> dict[str, Any]:
    """What the event says of a version, from its facts alone."""
    from compalign_dagster.pages.browse import address

    facts, name = artifact.facts, artifact.work_key[:12]
    pages = {reason: storage.pages_url + address(name, reason) for reason in facts["dropped_by_reason"]}
    return {
        **{figure: facts[figure] for figure in ("pairs", "kept", "dropped", "quarantined", "coverage")},
        **{figure: facts[figure] for figure in ("mean_reward_kept", "expected_fit") if facts.get(figure) is not None},
        "keep_rate": facts["kept"] / facts["pairs"] if facts["pairs"] else 0.0,
        "model_version": facts["model_version"] or "",
        "policy": dg.MetadataValue.json(facts["policy"]),
        "budgets": dg.MetadataValue.json(facts["budgets"][:_BUDGETS_SHOWN]),
        "dropped by reason": linked_counts("reason", facts["dropped_by_reason"], pages),
        "ranked lists made": facts["lists"]["made"],
        "ranked lists used again": facts["lists"]["reused"],
        "all pairs": dg.MetadataValue.url(storage.pages_url + address(name)),
        "dagster/column_lineage": column_lineage(_COLUMNS),
        "code": code(
            "from compalign_dagster.selection.training import KeptPairs",
            f"pairs = KeptPairs.open({storage.store_url!r}, {storage.landing_url!r}, {name!r})",
            "for sample in pairs: ...  # image, caption, pair_id, reward",
        ),
    }


def unaccounted(facts: Mapping[str, Any], policy: Policy) -> list[str]:
    """What does not add up in a dataset's counts."""
    problems = []
    if facts["pairs"] != facts["kept"] + facts["dropped"] + facts["quarantined"]:
        problems.append("pairs are not kept + dropped + quarantined")
    if facts["dropped"] != sum(facts["dropped_by_reason"].values()):
        problems.append("the reasons do not add up to the dropped pairs")
    if facts["kept"] != sum(budget["kept"] for budget in facts["budgets"]):
        problems.append("the budgets do not add up to the kept pairs")
    for budget in facts["budgets"]:
        wanted = policy.count_of(budget["budget"], budget["n"])
        if budget["k"] != wanted:
            problems.append(f"budget {budget['budget']} asks for {budget['k']}, not {wanted}")
        if budget["kept"] != wanted and not (budget["short"] and budget["kept"] < wanted):
            problems.append(f"budget {budget['budget']} keeps {budget['kept']}, not {wanted}")
    return problems


def _policy(storage: Storage, settings: Settings, config: SelectionConfig) -> tuple[PolicyInForce, bool]:
    """The policy to apply, and whether this is a trial."""
    now = in_force(storage.store, first_policy(settings))
    tried = _tried(now.policy, config)
    if config.adopt and tried != now.policy:
        return adopt(storage.store, tried, Reason.given(None, config.why)), False
    return PolicyInForce(tried, now.version), tried != now.policy


def _tried(policy: Policy, config: SelectionConfig) -> Policy:
    """The policy in force with the launchpad's changes; a count takes the place of a fraction, and the reverse."""
    changes = dict(config.policy)
    if config.keep_fraction is not None:
        changes["keep_fraction"] = config.keep_fraction
    if config.keep_per_corpus is not None:
        changes["per_corpus"] = config.keep_per_corpus
    if not changes:
        return policy
    fields = policy.model_dump(mode="json")
    for given, other in (("keep_fraction", "keep_count"), ("keep_count", "keep_fraction")):
        if changes.get(given) is not None and other not in changes:
            fields[other] = None
    return policy_file.checked({**fields, **changes}, "policy of the launchpad")


def _rows_in_force(ledger: Artifact, settings: Settings) -> tuple[list[dict], float]:
    """The ledger rows of the model to use, and its coverage.

    The promoted model is used once it covers enough of the crawl; until then whichever model covers most.
    """
    covers = ledger.facts["coverage"]  # promoted first
    enough = [entry for entry in covers if entry["coverage"] >= settings.min_coverage]
    chosen = enough[0] if enough else max(covers, key=lambda entry: entry["coverage"])
    rows = parquet.read(ledger.fetch("ledger.parquet")).to_pylist()
    rows = [row for row in rows if row["model_version"] == chosen["model_version"]]
    if not rows:
        raise CompalignError(
            f"ledger {ledger.uri}",
            expected="scores of at least one live shard",
            found="none",
            remedy="Materialise scored_shards for a batch, then score_ledger.",
        )
    return rows, chosen["coverage"]


def publish_dataset(
    storage: Storage, settings: Settings, policy: PolicyInForce, ledger: Artifact, *, reshard: bool = False
) -> tuple[Artifact, bool]:
    """The dataset that a policy makes of a ledger."""
    store = storage.store
    takedown.enforce(store)
    rows, coverage = _rows_in_force(ledger, settings)
    config = {"reshard": reshard, "coverage": coverage}
    others = deciding.others_of(store, rows, policy.policy)
    key = deciding.key_with(others, rows, policy.policy, config)

    def make() -> Artifact:
        log.info("filtered_dataset: deciding on %d shards", len(rows))
        decided = deciding.decide(store, rows, policy.policy, others)
        if decided.lists.is_empty():
            raise CompalignError(
                f"ledger {ledger.uri}",
                expected="at least one pair to decide on",
                found=f"{decided.facts['pairs']:,} pairs, none of them scored",
                remedy="Look at the quarantine of scored_shards, score again, then materialise score_ledger.",
            )
        outcome = what_if(decided, policy.policy)
        facts = {
            "policy": policy.policy.model_dump(mode="json"),
            "coverage": coverage,
            "model_version": rows[0]["model_version"],
            "mean_reward_kept": outcome.mean_reward,
            "expected_fit": outcome.expected_fit,
        }
        decided = replace(decided, facts={**decided.facts, **facts})
        with tempfile.TemporaryDirectory() as folder:
            return deciding.publish(
                decided,
                ledger,
                key,
                config=config,
                files=_reshard(storage, decided, Path(folder, "shards")) if reshard else {},
                views=_views(storage, decided, key[:12]),
            )

    return latest.reuse_or_make(store, KIND, key, make)


def _reshard(storage: Storage, decided: Version, folder: Path) -> dict[str, Path]:
    from compalign_dagster.selection.pairs import kept_frames
    from compalign_dagster.selection.resharding import reshard

    shards = crawl_shards(storage, decided.shards["shard"].to_list())
    return {f"shards/{path.name}": path for path in reshard(kept_frames(decided), shards, folder)}


def _views(storage: Storage, decided: Version, name: str) -> dict[str, bytes]:
    """The curator's pages and pictures of a version, and the auditor's page."""
    from compalign_dagster.lineage.audit import audit_facts
    from compalign_dagster.pages.audit import audit_page
    from compalign_dagster.pages.dataset import dataset_views
    from compalign_dagster.pages.what_if import what_if_view

    return {
        **dataset_views(decided, storage.landing, name),
        "what_if.html": what_if_view(decided, storage.landing, name),
        "audit.html": audit_page(audit_facts(decided, name)),
        **_changes(storage, decided, name),
    }


def _changes(storage: Storage, decided: Version, name: str) -> dict[str, bytes]:
    """The page of what changes from the current version, where it takes little to draw; else `compalign diff` tells."""
    from compalign_dagster.pages.diff import diff_view
    from compalign_dagster.selection.diff import rows_read

    now = current.read(storage.store)
    if now is None:
        return {}
    try:
        before = Version.open(now)
        if rows_read(before, decided) > _MOST_ROWS_COMPARED:
            return {}
        return {"diff.html": diff_view(before, decided, storage.landing, name=name)}
    except CompalignError as error:  # of the version before: whatever is wrong with it must not hold this one up
        log.warning("filtered_dataset: no page of what changed: %s", error)
        return {}
