"""The audit page of a version: where it comes from, what was dropped and why, who judged, what nobody can say."""

from collections.abc import Mapping
from typing import Any

from compalign_dagster.pages.render import render

_COMMANDS = (
    ("Is it what it says? From the files alone, back to the landed bytes.", "compalign verify {version}"),
    ("A database to ask", "compalign audit-db audit.duckdb --version {version}"),
    ("Where a pair comes from, and why it was kept", "compalign trace PAIR_ID"),
    ("What hangs on a host, an image, a labeler, a batch, a model", "compalign impact --url-host HOST"),
    ("Somebody wants something gone", "compalign takedown request.csv --dry-run"),
)
_EXPORTS_SHOWN = 100
_SQL = """select coalesce(reason, 'kept') as decision, count(*) as pairs
from decided group by all order by pairs desc"""


def audit_page(facts: Mapping[str, Any]) -> bytes:
    """The page, UTF-8. `facts` are those of `lineage/audit.py: audit_facts`; every table of them is bounded there."""
    return render(
        "audit.html",
        facts=facts,
        judged=[
            {**item, "exports": [(one["file"], one["sha256"]) for one in item["exports"][:_EXPORTS_SHOWN]]}
            for model in facts["models"]
            for item in model["trained_on"]
            if "images_by_labeler" in item
        ],
        rules=list(facts["policy"].items()),
        commands=[(what, command.format(version=facts["version"])) for what, command in _COMMANDS],
        sql=_SQL,
    )
