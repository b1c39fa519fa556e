"""`duplicate_groups`: which images of the live crawl occur again, exactly or nearly.

Nothing downstream waits for it and nothing starts it by itself: it reads the hashes of the whole crawl,
and a batch that arrives must not cost the crawl. Materialise it when the question is asked; the same
crawl costs nothing a second time.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

import dagster as dg
import polars as pl

from assets import keys, sheets
from assets.reporting import materialized
from compalign_dagster import artifacts, latest, parquet
from compalign_dagster.artifacts import Artifact
from compalign_dagster.crawl.duplicates import CODE_VERSION, DUPLICATES, find_duplicates
from compalign_dagster.settings import Settings
from compalign_dagster.versions import work_key
from resources.storage import Storage

KIND = keys.DUPLICATE_GROUPS.to_user_string()
_SHOWN = 20


@dg.asset(
    key=keys.DUPLICATE_GROUPS,
    deps=[keys.SCORE_LEDGER],
    group_name=keys.DATASET_GROUP,
    owners=keys.OWNERS,
    kinds={"parquet"},
    code_version=str(CODE_VERSION),
)
def duplicate_groups(storage: Storage, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult:
    """Samples of the live, scored crawl whose image occurs again: equal bytes or perceptual hashes few bits apart.

    Groups are chains: its two ends may differ more than neighbours do. Nothing is dropped by this.
    """
    artifact, reused = publish_groups(storage, settings.duplicate_bits)
    facts = artifact.facts
    return materialized(
        artifact,
        storage,
        reused=reused,
        rows=facts["grouped"],
        schema=DUPLICATES,
        metadata={
            **{name: facts[name] for name in ("images", "groups", "exact", "shards")},
            "share of images in groups": facts["grouped"] / facts["images"] if facts["images"] else 0.0,
            "largest group": facts["largest"][0]["group_size"] if facts["largest"] else 0,
            "largest groups": dg.MetadataValue.md(_table(facts["largest"][:_SHOWN])),
        },
    )


def publish_groups(storage: Storage, distance: int) -> tuple[Artifact, bool]:
    """The groups among the shards of the newest ledger, and whether they were there already."""
    store = storage.store
    ledger = latest.require(store, keys.SCORE_LEDGER.to_user_string())
    rows = parquet.read(ledger.fetch("ledger.parquet"), ["shard", "pairs_key", "index_version"]).to_pylist()
    shards = {row["shard"]: row for row in reversed(rows)}  # of two models' rows, the promoted one's, which is first
    config = {"distance": distance}
    key = work_key(
        KIND,
        code_version=CODE_VERSION,
        inputs=[[name, shards[name]["index_version"]] for name in sorted(shards)],
        config=config,
    )

    def make() -> Artifact:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "duplicates.parquet")
            pairs = (store.fetch(shards[name]["pairs_key"]) for name in sorted(shards))
            found = find_duplicates(pairs, out, distance=distance)
            return artifacts.publish(
                store,
                KIND,
                key,
                {out.name: out},
                code_version=CODE_VERSION,
                inputs=[ledger.as_input()],
                config=config,
                facts={**asdict(found), "shards": len(shards)},
                views=sheets.sheet(storage, _members(out, [group["group_id"] for group in found.largest])),
            )

    return latest.reuse_or_make(store, KIND, key, make)


def _members(found: Path, groups: list[str]) -> list[list[dict]]:
    """Different images of each of the largest groups that hold such, group by group."""
    rows = pl.scan_parquet(found).filter(pl.col("group_id").is_in(groups), pl.col("group_images") > 1)
    members = rows.unique(["group_id", "image_sha256"], keep="first", maintain_order=True).collect()
    shown = [name for name in groups if name in set(members["group_id"])][: sheets.SIDE]
    return [members.filter(group_id=name).head(sheets.SIDE).to_dicts() for name in shown]


def _table(groups: list[dict]) -> str:
    lines = ["| group | samples | different images |", "| --- | ---: | ---: |"]
    lines += [f"| {row['group_id'][:16]} | {row['group_size']:,} | {row['group_images']:,} |" for row in groups]
    return "\n".join(lines) if groups else "none"
