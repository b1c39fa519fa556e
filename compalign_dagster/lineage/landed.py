"""Whether what lies outside the store is still what a version was made from: landed shards and label exports.

What belongs here: their digests. What does not: what is inside them (`recompute.py`).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.crawl.batches import live_shards, read_log
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage.chain import RESTORED, Checked, Redacted, digest, manifest_of
from compalign_dagster.lineage.manifests import Fault
from compalign_dagster.lineage.redaction import Redaction
from compalign_dagster.store import Store

SHARD, EXPORT = "landed_shard", "label_export"


@dataclass
class Landed:
    """What was compared with what is there."""

    faults: list[Fault] = field(default_factory=list)
    shards: int = 0
    exports: int = 0
    superseded: list[str] = field(default_factory=list)  # shards that the batch log has replaced or removed since
    redacted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Delivery:
    """A landed shard that an index was made of."""

    source: Input
    index: Artifact  # of kind raw_crawl_shards
    batches: frozenset[str | None]  # whose index it belongs to: a shard that left and came back is in two

    @property
    def shard(self) -> str:
        """Its name relative to the landing root."""
        return str(self.index.facts["shard"])


def deliveries(chain: Checked) -> list[Delivery]:
    """Every landed shard of a chain, in the order of the walk."""
    batches_of: dict[str, set[str | None]] = defaultdict(set)
    for made in chain.artifacts.values():
        if made.kind == "raw_crawl":
            for source in made.inputs:
                batches_of[source.key].add(made.partition)
    found = []
    for made in chain.artifacts.values():
        for source in made.inputs:
            if source.kind == SHARD:
                found.append(Delivery(source, made, frozenset(batches_of[made.manifest_key] or {None})))
    return found


def check(store: Store, chain: Checked, redacted: Redacted, landing: Store | None, labels: Store | None) -> Landed:
    """Read what lies outside again, as far as a store of it is given, and compare it with what the indexes say."""
    found = Landed()
    if landing is not None:
        live = {shard: batch for shard, (batch, _) in live_shards(read_log(store)).items()}
        for delivery in deliveries(chain):
            _check_shard(delivery, landing, live, redacted, found)
    if labels is not None:
        for source in chain.outside:
            if source.kind == EXPORT:
                found.exports += 1
                found.faults += _compared(source, source.key, _digest(labels, source.key))
    found.faults += _unknown(chain)
    return found


def _check_shard(delivery: Delivery, landing: Store, live: dict[str, str], redacted: Redacted, found: Landed) -> None:
    source, name = delivery.source, delivery.shard
    found.shards += 1
    if not source.key.endswith(f"/{name}"):
        detail = f"is {name}, but the index was made of {source.key}"
        found.faults.append(Fault(delivery.index.manifest_key, "facts.shard", detail))
        return
    now = _digest(landing, name)
    by_request = redacted.get(source.key, Redaction.none(source.key)).explains(source.data_version, now)
    if now == source.data_version:
        found.faults += [] if by_request else [Fault(f"{landing.url}/{name}", "", RESTORED)]
    elif by_request and now is not None:  # no takedown deletes a shard
        found.redacted.append(source.key)
    elif live.get(name) not in delivery.batches:
        found.superseded.append(name)
    else:
        found.faults += _compared(source, f"{landing.url}/{name}", now)


def _compared(source: Input, where: str, now: str | None) -> list[Fault]:
    if now == source.data_version:
        return []
    state = "it is gone" if now is None else f"sha256 is {now}"
    return [Fault(where, "", f"{source.kind}: {state}, but {source.data_version} was used")]


def _unknown(chain: Checked) -> Iterator[Fault]:
    """Inputs that are neither artifacts nor anything that lies outside."""
    for made in chain.artifacts.values():
        for source in made.inputs:
            if manifest_of(source, chain) is None and source in chain.outside and source.kind not in (SHARD, EXPORT):
                yield Fault(made.manifest_key, "inputs", f"{source.kind} {source.key} is nothing that can be verified")


def _digest(store: Store, key: str) -> str | None:
    try:
        return digest(store, key)[0]
    except FileNotFoundError:
        return None
    except CompalignError as error:
        return f"unknown ({error})"
