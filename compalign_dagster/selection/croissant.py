"""A Croissant description (JSON-LD, version 1.1) of an exported dataset, for tools that find and load datasets.

What belongs here: what the description says. What does not: the files (`exporting.py`), whether a description is what
it says (`croissant_check.py`), and reading one, which any Croissant reader does.

Provenance is in the terms of PROV-O, limits and biases in those of Croissant RAI 1.0; a term of which the store knows
nothing is absent.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from compalign_dagster.parquet import meaning
from compalign_dagster.selection.limits import JUDGES, PEOPLE, known_limits
from compalign_dagster.selection.reasons import MEANING
from compalign_dagster.selection.tables import DROPPED, KEPT
from compalign_dagster.selection.version import Version
from compalign_dagster.versions import canonical_json

NAME = "croissant.json"
PAPER = "Compress & Align: Curating Image-Text Data with Human Knowledge, arXiv 2312.06726"
LICENSE = (
    "unknown: images and captions were found on the web and belong to whoever made them; nothing is known of the terms "
    "that they may be used under, and nothing here grants any"
)

_CORPORA_TOLD = 100
_TABLES = {"kept": ("kept.parquet", KEPT), "dropped": ("dropped.parquet", DROPPED)}
_MEDIA_TYPES = {
    ".parquet": "application/x-parquet",
    ".tar": "application/x-tar",
    ".json": "application/json",
    ".md": "text/markdown",
    ".png": "image/png",
}
_TYPES = {pa.string(): "sc:Text", pa.int32(): "cr:Int32", pa.int64(): "cr:Int64", pa.float32(): "cr:Float32"}
_OWN_TERMS = (  # noqa: SIM905 - terms of the vocabulary that mean what their name says
    "arrayShape citeAs column containedIn equivalentProperty extract field fileProperty fileObject fileSet format "
    "includes isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace "
    "samplingRate separator source subField transform"
).split()
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _OWN_TERMS},
}


def describe(version: Version, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The description of a version and its exported `files`: name -> `sha256`, `bytes`, `about`."""
    artifact, facts = version.artifact, version.facts
    name = f"compalign-{artifact.work_key[:12]}"
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": name,
        "description": (
            f"{facts['kept']} image-text pairs, kept of {facts['pairs']} found on the web because a reward model that "
            "learned from human preferences gives them the highest rewards. Images stay in the shards that landed; "
            "each pair says in which, and where."
        ),
        "identifier": artifact.data_version,
        "url": f"urn:sha256:{artifact.data_version}",
        "version": f"1.0.0+{artifact.data_version[:12]}",
        "datePublished": artifact.manifest["created"],
        "license": LICENSE,
        "citeAs": f"{PAPER}; dataset version {artifact.data_version}",
        **_responsible(version),
        **_provenance(version),
        "distribution": [_file(path, entry) for path, entry in sorted(files.items())],
        "recordSet": [_records(table, *_TABLES[table]) for table in _TABLES if _TABLES[table][0] in files],
    }


def _responsible(version: Version) -> dict[str, Any]:
    facts = version.facts
    counted = [(name, facts["dropped_by_reason"].get(name, 0)) for name in MEANING]
    steps = [f"dropped {count}: {name}, {MEANING[name]}" for name, count in counted if count]
    shares = [f"of {name}, {of['kept']} of {of['pairs']} pairs are kept" for name, of in facts["corpora"].items()]
    return {
        "rai:dataCollection": (
            f"Image-text pairs of {version.shards.height} webdataset shards in {len(version.batches())} batches, as a "
            "crawl delivered them."
        ),
        "rai:dataPreprocessingProtocol": [
            f"{facts['pairs']} pairs in, {facts['quarantined']} could not be scored",
            *steps,
            f"kept {facts['kept']}",
        ],
        "rai:machineAnnotationTools": [f"reward model {facts['model_version']}: reward, human_fit"],
        "rai:dataBiases": [JUDGES, *shares[:_CORPORA_TOLD]],
        "rai:dataLimitations": [line for line in known_limits(version) if line not in (JUDGES, PEOPLE)],
        "rai:personalSensitiveInformation": ["Not looked for: images show people, and captions may name them.", PEOPLE],
    }


def _provenance(version: Version) -> dict[str, Any]:
    artifact = version.artifact
    return {
        "prov:wasDerivedFrom": [
            {"@type": "prov:Entity", "@id": f"urn:sha256:{item.data_version}", "name": item.key}
            for item in artifact.inputs
        ],
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "@id": f"urn:compalign:{artifact.work_key}",
            "name": artifact.kind,
            "description": "The selection policy: " + canonical_json(version.policy.model_dump(mode="json")).decode(),
            "softwareVersion": f"code version {artifact.manifest['code_version']}",
            "prov:endedAtTime": artifact.manifest["created"],
        },
    }


def _file(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "description": entry["about"],
        "contentUrl": path,
        "contentSize": f"{entry['bytes']} B",
        "encodingFormat": _MEDIA_TYPES.get(PurePosixPath(path).suffix, "application/octet-stream"),
        "sha256": entry["sha256"],
    }


def _records(table: str, path: str, schema: pa.Schema) -> dict[str, Any]:
    key: Sequence[str] = ("shard", "key", "caption_index")
    return {
        "@type": "cr:RecordSet",
        "@id": table,
        "name": table,
        "description": f"One record for each {table} pair.",
        "key": [{"@id": f"{table}/{name}"} for name in key],
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{table}/{column.name}",
                "name": column.name,
                "description": meaning(column),
                "dataType": _TYPES[column.type],
                "source": {"fileObject": {"@id": path}, "extract": {"column": column.name}},
            }
            for column in schema
        ],
    }
