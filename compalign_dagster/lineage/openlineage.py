"""A version's lineage as OpenLineage events, for catalogues that speak it.

What belongs here: one event for each artifact behind a version, from its manifest. What does not: sending them, and
whether the chain holds (`verify.py`): an artifact that is gone is named by what was made of it, and has no event.

Events follow specification 2-0-2. Equal stores give equal bytes: a run's id is made of its manifest's digest, its time
is when the artifact was published.
"""

import json
from collections.abc import Iterator
from importlib.metadata import version as installed
from typing import Any
from uuid import UUID, uuid5

from compalign_dagster import artifacts
from compalign_dagster.artifacts import Artifact, Input
from compalign_dagster.lineage.chain import manifest_key_of
from compalign_dagster.parquet import meaning
from compalign_dagster.selection.tables import RANKED
from compalign_dagster.selection.versions import KIND
from compalign_dagster.store import Store

SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
SELECTION = "urn:compalign-dagster:openlineage-selection:v1"
WORK = "urn:compalign-dagster:openlineage-work:v1"

_FACETS = "https://openlineage.io/spec/facets"
_VERSION = f"{_FACETS}/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
_SCHEMA = f"{_FACETS}/1-2-0/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet"
_STATISTICS = f"{_FACETS}/1-0-2/OutputStatisticsOutputDatasetFacet.json#/$defs/OutputStatisticsOutputDatasetFacet"
_RUNS = UUID("6f0c1c3e-6f2b-5a53-9d1c-6f2f6b0a8f11")  # names of runs are digests of manifests


def lines(artifact: Artifact) -> Iterator[str]:
    """The events of an artifact and all behind it as lines of JSON, each after those of what it was made from."""
    for made in _behind(artifact, set()):
        yield json.dumps(event(made), sort_keys=True)


def event(artifact: Artifact) -> dict[str, Any]:
    """The event that says from what an artifact was made."""
    return {
        "eventType": "COMPLETE",
        "eventTime": artifact.manifest["created"],
        "producer": _producer(),
        "schemaURL": f"{SPEC}#/$defs/RunEvent",
        "run": {
            "runId": str(uuid5(_RUNS, artifact.manifest_sha256)),
            "facets": {
                "compalign_work": _facet(
                    WORK, work_key=artifact.work_key, code_version=str(artifact.manifest["code_version"])
                )
            },
        },
        "job": {"namespace": "compalign", "name": artifact.kind},
        "inputs": [_input(artifact.store, source) for source in artifact.inputs],
        "outputs": [_output(artifact)],
    }


def _behind(artifact: Artifact, seen: set[str]) -> Iterator[Artifact]:
    """The artifacts that one was made from, however far, each once and before what was made of it; then itself."""
    seen.add(artifact.manifest_key)
    for source in artifact.inputs:
        key = manifest_key_of(source)
        made = artifacts.load(artifact.store, key) if key and key not in seen else None
        if made is not None:
            yield from _behind(made, seen)
    yield artifact


def _input(store: Store, source: Input) -> dict[str, Any]:
    if manifest_key_of(source) is None:
        return _dataset(source.key, source.data_version)
    return _dataset(_place(store, source.kind, source.partition), source.data_version)


def _output(artifact: Artifact) -> dict[str, Any]:
    named = _dataset(_place(artifact.store, artifact.kind, artifact.partition), artifact.data_version)
    if artifact.kind != KIND:
        return named
    facts = artifact.facts
    fields = [{"name": column.name, "type": str(column.type), "description": meaning(column)} for column in RANKED]
    named["facets"]["schema"] = _facet(_SCHEMA, fields=fields)
    named["outputFacets"] = {
        "outputStatistics": _facet(_STATISTICS, rowCount=facts["kept"]),
        "compalign_selection": _facet(
            SELECTION,
            pairs=facts["pairs"],
            kept=facts["kept"],
            quarantined=facts["quarantined"],
            dropped=facts["dropped_by_reason"],
            model_version=facts["model_version"],
            policy=facts["policy"],
        ),
    }
    return named


def _place(store: Store, kind: str, partition: str | None) -> str:
    """What all versions of a kind, or of one of its partitions, are called."""
    return "/".join(part for part in (store.url, kind, partition) if part)


def _dataset(place: str, data_version: str) -> dict[str, Any]:
    """A dataset as the specification names those of buckets and disks; what a URL says of users is left out."""
    scheme, found, rest = place.partition("://")  # no parser of URLs: in a key, `?` and `#` are letters
    bucket, _, key = rest.partition("/")
    namespace, name = (f"{scheme}://{bucket.rpartition('@')[2]}", key) if found else ("file", place)
    version = _facet(_VERSION, datasetVersion=data_version)
    return {"namespace": namespace, "name": name, "facets": {"version": version}}


def _facet(schema: str, **values: Any) -> dict[str, Any]:
    return {"_producer": _producer(), "_schemaURL": schema, **values}


def _producer() -> str:
    return f"urn:compalign-dagster:{installed('compalign-dagster')}"
