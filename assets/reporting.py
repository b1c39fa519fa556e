"""From a published artifact to what Dagster is told: data version, metadata, links, pictures.

Metadata is derived from the artifact alone, so that a reused artifact reports the same facts as a new
one, with `reused` true. Events are kept small: big things are one click away, on the page.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from compalign_dagster.artifacts import Artifact
from compalign_dagster.markdown import inert
from compalign_dagster.parquet import meaning
from resources.storage import Storage

PAGE = "page.html"
_INPUTS_SHOWN, _PROBLEMS_SHOWN = 50, 20
PREVIEW, PLOT = "preview.jpg", "plot.png"  # a contact sheet, a drawn figure: small enough for an event


def materialized(
    artifact: Artifact,
    storage: Storage,
    *,
    reused: bool,
    rows: int | None = None,
    schema: pa.Schema | None = None,
    metadata: Mapping[str, Any] | None = None,
    checks: Sequence[dg.AssetCheckResult] = (),
) -> dg.MaterializeResult:
    """The result of an asset whose artifact is published."""
    facts: dict[str, Any] = {
        "reused": dg.MetadataValue.bool(reused),
        "dagster/uri": artifact.uri,
        **(metadata or {}),
    }
    if rows is not None:
        partitioned = artifact.partition is not None
        facts["dagster/partition_row_count" if partitioned else "dagster/row_count"] = rows
    if schema is not None:
        facts["dagster/column_schema"] = table_schema(schema)
    for name in sorted(artifact.manifest["files"]):
        if name.endswith(".html") and artifact.has_view(name):  # page.html is "page", what_if.html is "what if"
            label = name.removesuffix(".html").replace("_", " ")
            facts[label] = dg.MetadataValue.url(storage.page_url(artifact, name))
    for name in (PREVIEW, PLOT):
        if artifact.has_view(name):
            facts[name.partition(".")[0]] = picture(artifact.store.read(artifact.file_key(name)))
    facts["work_key"] = artifact.work_key
    facts["inputs"] = dg.MetadataValue.json([entry.__dict__ for entry in artifact.inputs[:_INPUTS_SHOWN]])
    if len(artifact.inputs) > _INPUTS_SHOWN:
        facts["inputs in all"] = len(artifact.inputs)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.data_version), metadata=facts, check_results=list(checks)
    )


def table_schema(schema: pa.Schema) -> dg.TableSchema:
    """Columns with their meanings, for the Dagster UI."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                type=str(field.type),
                description=meaning(field),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def picture(data: bytes) -> dg.MarkdownMetadataValue:
    """A small JPEG or PNG shown inline; the event row stores it, so it must be small."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return dg.MetadataValue.md(f"![preview](data:image/{kind};base64,{base64.b64encode(data).decode()})")


def counts_table(title: str, counts: Mapping[str, int]) -> dg.MarkdownMetadataValue:
    """Counts per name as a Markdown table, largest first."""
    lines = [f"| {title} | count |", "| --- | ---: |"]
    lines += [f"| {name} | {count:,} |" for name, count in sorted(counts.items(), key=lambda item: -item[1])]
    return dg.MetadataValue.md("\n".join(lines) if counts else "none")


def linked_counts(title: str, counts: Mapping[str, int], pages: Mapping[str, str]) -> dg.MarkdownMetadataValue:
    """As `counts_table`, in the order given, each name a link; for names of our own."""
    lines = [f"| {title} | count |", "| --- | ---: |"]
    lines += [f"| [{name}]({pages[name]}) | {count:,} |" for name, count in counts.items()]
    return dg.MetadataValue.md("\n".join(lines) if counts else "none")


def column_lineage(columns: Mapping[str, tuple[dg.AssetKey, str]]) -> dg.MetadataValue:
    """For each column the asset and the column that it comes from."""
    deps = {name: [dg.TableColumnDep(asset_key=asset, column_name=column)] for name, (asset, column) in columns.items()}
    return dg.MetadataValue.column_lineage(dg.TableColumnLineage(deps))


def code(*lines: str) -> dg.MarkdownMetadataValue:
    """Python that reads what was made."""
    return dg.MetadataValue.md("\n".join(("```python", *lines, "```")))


def claim(name: str, problems: Sequence[str], **facts: Any) -> dg.AssetCheckResult:
    """An exact claim made while writing: passed when no problem was found."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=not problems,
        metadata={"problems": problems_list(problems), **facts},
    )


def problems_list(problems: Sequence[str]) -> dg.MarkdownMetadataValue:
    """The first problems, as text: names in them come from outside."""
    shown = [inert(text) for text in problems[:_PROBLEMS_SHOWN]]
    more = [f"{len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
    return dg.MetadataValue.md("\n".join(f"- {text}" for text in [*shown, *more]) or "none")
