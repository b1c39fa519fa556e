"""What OpenLineage 2-0-2 and three of its facets ask of a run event, as JSON schema; ours, after `spec/` there.

Formats that jsonschema checks only with further packages are patterns here.
"""

from typing import Any

_URI = {"type": "string", "pattern": r"^[a-z][a-z0-9+.-]*:[^\s<>\"{}|\\^`]+$"}
_TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"}
_TEXT = {"type": "string"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _facets(**known: Any) -> dict[str, Any]:
    return {"type": "object", "properties": known, "additionalProperties": {"$ref": "#/$defs/BaseFacet"}}


def _facet(*required: str, **properties: Any) -> dict[str, Any]:
    return {"allOf": [{"$ref": "#/$defs/BaseFacet"}, _object(list(required), **properties)]}


_FIELD = _object(["name"], name=_TEXT, type=_TEXT, description=_TEXT)
RUN_EVENT: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "BaseFacet": _object(["_producer", "_schemaURL"], _producer=_URI, _schemaURL=_URI),
        "Dataset": _object(
            ["namespace", "name"],
            namespace=_TEXT,
            name=_TEXT,
            facets=_facets(
                version=_facet("datasetVersion", datasetVersion=_TEXT),
                schema=_facet(fields={"type": "array", "items": _FIELD}),
            ),
        ),
    },
    **_object(
        ["eventTime", "producer", "schemaURL", "run", "job"],
        eventTime=_TIME,
        producer=_URI,
        schemaURL=_URI,
        eventType={"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        run=_object(["runId"], runId={"type": "string", "format": "uuid"}, facets=_facets()),
        job=_object(["namespace", "name"], namespace=_TEXT, name=_TEXT, facets=_facets()),
        inputs={
            "type": "array",
            "items": {"allOf": [{"$ref": "#/$defs/Dataset"}, _object([], inputFacets=_facets())]},
        },
        outputs={
            "type": "array",
            "items": {
                "allOf": [
                    {"$ref": "#/$defs/Dataset"},
                    _object(
                        [],
                        outputFacets=_facets(outputStatistics=_facet(rowCount={"type": "integer"})),
                    ),
                ]
            },
        },
    ),
}
