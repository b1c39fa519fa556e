"""A version of the dataset, verified from the store alone: files, links, decisions, landed bytes, seal.

What belongs here: which checks there are, and their report. What does not: any of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compalign_dagster import decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import CompalignError
from compalign_dagster.lineage import chain, landed, manifests, pointers, redo, seal
from compalign_dagster.lineage.chain import Checked, Redacted, manifest_of
from compalign_dagster.lineage.keys import TrustedKey
from compalign_dagster.lineage.landed import Landed
from compalign_dagster.lineage.manifests import Fault, blaming
from compalign_dagster.lineage.redaction import DECISION as REDACTIONS
from compalign_dagster.lineage.redaction import TAKEDOWNS, in_force, redactions, unfounded
from compalign_dagster.lineage.relist import Redone
from compalign_dagster.lineage.sampling import bound
from compalign_dagster.selection import blocks
from compalign_dagster.selection.blocks import Entry
from compalign_dagster.store import Store

if TYPE_CHECKING:
    from compalign_dagster.lineage.recompute import Recomputed

_SHOWN = 200


@dataclass(frozen=True)
class Wanted:
    """How far to go. Shares are from 0 to 1."""

    landing: Store | None = None
    labels: Store | None = None
    sample: float = 1.0  # of the batches whose decisions are made again
    recompute: float = 0.0  # of the pairs that are read and scored again from the landing
    seed: str = ""  # the auditor's own, so that nobody could foresee what is drawn
    device: str = "auto"
    seal: Path | None = None
    trusted: Mapping[str, TrustedKey] = field(default_factory=dict)


@dataclass
class Report:
    """What was looked at and what is wrong."""

    manifest_key: str
    chain: Checked = field(default_factory=Checked)
    redone: Redone = field(default_factory=Redone)
    landed: Landed | None = None
    recomputed: "Recomputed | None" = None
    sealed: bool = False  # a seal was looked at
    redacted_since: int = 0  # records of redactions that are not in the seal
    faults: list[Fault] = field(default_factory=list)

    @property
    def redacted(self) -> list[str]:
        """Files that recorded takedowns rewrote or removed."""
        return sorted({*self.chain.redacted, *(self.landed.redacted if self.landed else ())})

    def lines(self) -> Iterator[str]:
        """The report, a line each."""
        found, redone = self.chain, self.redone
        yield f"version {self.manifest_key}"
        yield f"chain: {len(found.artifacts)} artifacts, {found.links} links, {found.bytes:,} bytes read"
        if self.landed is None:
            yield "landed bytes: not looked at"
        else:
            yield f"landed bytes: {self.landed.shards} shards and {self.landed.exports} label exports read"
            if self.landed.superseded:
                yield f"superseded or removed by later batches: {_some(self.landed.superseded)}"
        yield f"decisions: {redone.batches} of {redone.of_batches} batches made again, {redone.rows:,} pairs"
        if redone.batches + redone.passed_over < redone.of_batches:
            yield f"decisions: {bound(len(redone.wrong), redone.batches, redone.of_batches, 'batches')}"
        if self.recomputed is not None:
            yield from self.recomputed.lines()
        if self.redacted:
            yield f"redacted: {_some(self.redacted)}"
        if self.sealed:
            yield f"seal: looked at; {self.redacted_since} records of redactions are younger than it"
        for fault in self.faults[:_SHOWN]:
            yield f"FAULT {fault}"
        if len(self.faults) > _SHOWN:
            yield f"and {len(self.faults) - _SHOWN} more"
        yield f"{len(self.faults)} faults" if self.faults else "no fault found"


def verify_version(store: Store, manifest_key: str, wanted: Wanted | None = None) -> Report:
    """Everything that can be verified of a version, from the files; faults are in the order they were met.

    Raises `InputError` for a seal that is none.
    """
    wanted = wanted or Wanted()
    envelope = None if wanted.seal is None else seal.read(wanted.seal)
    report = Report(manifest_key)
    with blaming(report.faults, f"decisions/{REDACTIONS}"):
        for where, request in unfounded(store):
            report.faults.append(Fault(where, "value.request", f"no purge of {request} is on record"))
    redacted = _redacted(store, report.faults)
    top = _top(store, manifest_key, report)
    if top is None:
        return report
    report.chain = chain.check(top, store, redacted=redacted)
    report.faults += report.chain.faults
    report.faults += pointers.check(store, report.chain.artifacts.values(), top)
    with blaming(report.faults, f"decisions/{TAKEDOWNS}"):
        report.faults += _unblocked(top, report.chain)
    report.redone = redo.check(top, report.chain, share=wanted.sample, seed=wanted.seed)
    report.faults += report.redone.faults
    if wanted.landing is not None or wanted.labels is not None:
        with blaming(report.faults, "decisions/batches"):
            report.landed = landed.check(store, report.chain, redacted, wanted.landing, wanted.labels)
            report.faults += report.landed.faults
    if wanted.recompute and wanted.landing is not None:
        _recomputed(top, report, wanted, wanted.landing)
    if envelope is not None:
        report.sealed = True
        with blaming(report.faults, manifest_key, "seal"):
            report.redacted_since = seal.redacted_since(envelope, store)
            report.faults += seal.check(str(wanted.seal), envelope, wanted.trusted, top, report.chain)
    report.faults = list(dict.fromkeys(report.faults))
    return report


def _top(store: Store, key: str, report: Report) -> Artifact | None:
    try:
        top, faults = manifests.read(store, key)
    except CompalignError as error:
        top, faults = None, [Fault(key, "", str(error))]
    if top is None:
        report.faults += faults
    return top


def _redacted(store: Store, faults: list[Fault]) -> Redacted:
    with blaming(faults, f"decisions/{REDACTIONS}"):
        return redactions(store)
    return {}


def _unblocked(top: Artifact, found: Checked) -> Iterator[Fault]:
    """Entries of the block list that were asked for before the version was made, and that its list has not."""
    created = top.manifest["created"]
    before = [
        fact
        for fact in decisions.history(top.store, TAKEDOWNS)  # of the same second: only what takes back counts
        if fact.decided < created or (fact.decided == created and "withdraws" in fact.value)
    ]
    lists = [manifest_of(source, found) for source in top.inputs if source.kind == blocks.KIND]
    rows = [row for listed in lists if listed for row in blocks.entries(listed).to_pylist()]
    for entry in sorted(in_force(before) - {Entry(**row) for row in rows}):
        detail = f"the version was made without {entry.kind} {entry.value} of request {entry.request}, asked for before"
        yield Fault(top.manifest_key, "inputs", detail)


def _recomputed(top: Artifact, report: Report, wanted: Wanted, landing: Store) -> None:
    from compalign_dagster.lineage.recompute import recompute

    without = report.landed.superseded if report.landed else []
    with blaming(report.faults, top.manifest_key, "recompute"):
        report.recomputed = recompute(
            top, report.chain, landing, wanted.recompute, wanted.seed, wanted.device, without=without
        )
        report.faults += report.recomputed.faults


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} ({shown}{', ...' if len(names) > 5 else ''})"
