"""The start page of the page server: the newest artifacts and the pages drawn from them."""

from collections.abc import Mapping, Sequence
from typing import Any

from compalign_dagster.pages.render import render

_SHOWN = 500


def index_page(artifacts: Sequence[Mapping[str, Any]]) -> bytes:
    """The index of `artifacts`: `kind`, `partition` or None, `created` (ISO 8601), `data_version`, `links`.

    `links` are (name, absolute path on this server).
    """

    def moment(entry: Mapping[str, Any]) -> tuple[str, str, str]:
        return entry["created"], entry["kind"], entry["partition"] or ""

    newest = sorted(artifacts, key=moment, reverse=True)
    return render("index.html", artifacts=newest[:_SHOWN], left_out=len(newest) - len(newest[:_SHOWN]))
