"""`filtered_dataset`: exactly k pairs by the policy in force, why each other one was dropped, `current`."""

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from assets import keys
from assets.checks import filtered_dataset as checks
from assets.judged import crawl_shards
from assets.reporting import PAGE, PLOT, PREVIEW, claim, counts_table, materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.index import make_pair_id
from compalign_dagster.crawl.shards import Shard, read_member
from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.selection import current, dataset, tables
from compalign_dagster.selection.in_force import PolicyInForce, adopt, in_force
from compalign_dagster.selection.policy import Policy, keep_count, parse_fraction
from compalign_dagster.selection.select import CODE_VERSION, decide
from compalign_dagster.settings import Settings
from compalign_dagster.store import ObjectMissingError
from compalign_dagster.versions import work_key
from resources.storage import Storage

KIND = keys.FILTERED_DATASET.to_user_string()
_GALLERY = 24

log = logging.getLogger(f"compalign_dagster.{__name__}")


class SelectionConfig(dg.Config):
    """Launchpad overrides. Any of them makes a trial that leaves `current` alone, unless adopted."""

    keep_fraction: str | None = Field(None, description="Keep fraction to try, such as 0.2.")
    keep_per_corpus: dict[str, str] | None = Field(None, description="Keep fractions of named corpora to try.")
    adopt: bool = Field(False, description="Put the tried policy in force and move `current`.")
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
    ],
)
def filtered_dataset(
    config: SelectionConfig, storage: Storage, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult:
    """The compact, well-aligned training set: pair lists with places in the original tars.

    One cut over the rewards of one model, by the selection policy in force. `current` moves last.
    """
    policy, trial = _policy(storage, settings, config)
    ledger, ledger_version = latest.numbered(storage.store, keys.SCORE_LEDGER.to_user_string())
    artifact, reused = publish_dataset(storage, settings, policy, ledger, reshard=config.reshard)
    facts = artifact.facts
    results = [
        claim("exactly_k_are_kept_and_every_other_pair_has_a_reason", unaccounted(facts)),
        checks.dataset_meets_expectations(artifact),
        checks.lineage_verifies(artifact),
    ]
    moved = False
    if not trial and all(result.passed for result in results):
        moved = current.move(artifact, policy=policy.version, ledger=ledger_version)
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["kept"],
        schema=tables.KEPT,
        metadata={
            **{name: facts[name] for name in ("pairs", "kept", "dropped", "quarantined", "images_kept", "coverage")},
            "keep_rate": facts["kept"] / facts["pairs"] if facts["pairs"] else 0.0,
            "trial": dg.MetadataValue.bool(trial),
            "current": dg.MetadataValue.bool(moved),
            "policy_version": policy.version,
            "model_version": facts["model_version"] or "",
            "policy": dg.MetadataValue.json(facts["policy"]),
            "budgets": dg.MetadataValue.json(facts["budgets"]),
            "dropped by reason": counts_table("reason", facts["dropped_by_reason"]),
        },
        checks=results,
    )


def unaccounted(facts: Mapping[str, Any]) -> list[str]:
    """What does not add up in a dataset's counts."""
    problems = []
    if facts["pairs"] != facts["kept"] + facts["dropped"] + facts["quarantined"]:
        problems.append("pairs are not kept + dropped + quarantined")
    if facts["dropped"] != sum(facts["dropped_by_reason"].values()):
        problems.append("the reasons do not add up to the dropped pairs")
    for budget in facts["budgets"]:
        wanted = keep_count(budget["fraction"], budget["n"])
        if budget["k"] != wanted:
            problems.append(f"budget {budget['budget']} keeps {budget['k']}, not {wanted}")
    return problems


def _policy(storage: Storage, settings: Settings, config: SelectionConfig) -> tuple[PolicyInForce, bool]:
    """The policy to apply, and whether this is a trial."""
    first = Policy(keep_fraction=settings.keep_fraction, per_corpus=dict(settings.keep_per_corpus))
    now = in_force(storage.store, first)
    if config.keep_fraction is None and config.keep_per_corpus is None:
        return now, False
    tried = Policy(
        keep_fraction=now.policy.keep_fraction
        if config.keep_fraction is None
        else parse_fraction(config.keep_fraction),
        per_corpus=now.policy.per_corpus
        if config.keep_per_corpus is None
        else {name: parse_fraction(value) for name, value in config.keep_per_corpus.items()},
    )
    if config.adopt:
        return adopt(storage.store, tried), False
    return PolicyInForce(tried, now.version), tried != now.policy


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
    rows, coverage = _rows_in_force(ledger, settings)
    choice = {"policy": policy.policy.model_dump(mode="json"), "reshard": reshard, "coverage": coverage}
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[[row["shard"], row["index_version"], row["data_version"]] for row in rows],
        config=choice,
    )

    def make() -> Artifact:
        log.info("filtered_dataset: deciding on %d shards", len(rows))
        pairs = [store.fetch(row["pairs_key"]) for row in rows]
        decided = decide([store.fetch(row["scores_key"]) for row in rows], policy.policy)
        made = dataset.build(decided, pairs, policy.policy, quarantined=sum(row["quarantined"] for row in rows))
        facts = {
            **made.facts,
            "policy": choice["policy"],
            "coverage": coverage,
        }
        with tempfile.TemporaryDirectory() as folder:
            files = {
                "kept.parquet": parquet.write(made.kept, Path(folder, "kept.parquet")),
                "dropped.parquet": parquet.write(made.dropped, Path(folder, "dropped.parquet")),
            }
            if reshard:
                files |= _reshard(storage, made, Path(folder, "shards"))
            return artifacts.publish(
                store,
                KIND,
                key,
                files,
                code_version=CODE_VERSION,
                inputs=[ledger.as_input()],
                config=choice,
                facts=facts,
                views=_views(storage, facts, dataset.histogram(decided), dataset.examples(decided, pairs, _GALLERY)),
            )

    return latest.reuse_or_make(store, KIND, key, make)


def _reshard(storage: Storage, made: dataset.FilteredDataset, folder: Path) -> dict[str, Path]:
    from compalign_dagster.selection.resharding import reshard

    shards = crawl_shards(storage, sorted(map(str, set(made.kept["shard"].to_pylist()))))
    return {f"shards/{path.name}": path for path in reshard(made.kept, shards, folder)}


def _picture(storage: Storage, row: dict) -> bytes:
    """A pair's image, empty where other bytes lie by now: the log learns of that later, and the dataset goes on."""
    shard = Shard(row["shard"], storage.landing, row["shard"])
    try:
        data = read_member(shard, row["image_offset"], row["image_length"])
    except (InputError, ObjectMissingError) as error:
        log.warning("filtered_dataset: a pair is shown without its picture: %s", error)
        return b""
    return data if make_pair_id(hashlib.sha256(data).digest(), row["caption"].encode()) == row["pair_id"] else b""


def _views(
    storage: Storage, facts: dict[str, Any], histogram: dict[str, list], examples: dict[str, list[dict]]
) -> dict[str, bytes]:
    """The curator's page: histogram with the cut, waterfall, galleries; and a contact sheet of kept pairs."""
    from compalign_dagster.pages.cards import Card
    from compalign_dagster.pages.filtered import filtered_page, histogram_picture
    from compalign_dagster.pages.images import contact_sheet

    def card(row: dict) -> Card:
        return Card(
            image=_picture(storage, row),
            caption=row["caption"],
            reward=row["reward"],
            note=f"{row['reason'] or 'kept'} · {row['shard']} {row['key']}",
        )

    galleries = {name: [card(row) for row in rows] for name, rows in examples.items()}
    page = filtered_page(facts, histogram, galleries)
    sheet = [entry.image for entry in galleries["kept"]]
    plot = histogram_picture(histogram, facts)
    return {PAGE: page, PLOT: plot, **({PREVIEW: contact_sheet(sheet, columns=8)} if sheet else {})}
