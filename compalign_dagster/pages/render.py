"""Templates to bytes: Jinja2 with everything escaped, and the few filters that pages share."""

import functools
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2

from compalign_dagster.pages.cards import readable

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
NOTHING = "–"


def render(template: str, **context: Any) -> bytes:
    """The page of a template (a file of `templates/`), UTF-8. A name it needs and lacks is an error."""
    text = _environment().get_template(template).render(policy=CONTENT_SECURITY_POLICY, **context)
    return text.encode("utf-8", "replace")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compalign_dagster.pages", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "count": count,
        "percent": percent,
        "number": number,
        "signed": signed,
        "readable": lambda text, limit=180: readable(text, limit).text,
        "words": lambda name: readable(str(name).replace("_", " "), 120).text,
        "points": points,
        "size": size,
        "moment": moment,
    }
    environment.filters.update(filters)
    return environment


def count(value: Any) -> str:
    """A whole number with thin spaces between thousands; what is no number, as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\u202f")
    return NOTHING if value is None else str(value)


def number(value: float | None, digits: int = 3) -> str:
    """A decimal with a true minus sign; a dash for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.{digits}f}".replace("-", "\u2212")


def signed(value: float | None, digits: int = 2) -> str:
    """A decimal that always carries its sign."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percent."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{100 * value:.{digits}f}\u202f%"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return NOTHING if value is None else signed(100 * value, 1)


def size(value: float | None) -> str:
    """Bytes in the largest fitting binary unit."""
    if value is None:
        return NOTHING
    at, units = 0, ("B", "KiB", "MiB", "GiB", "TiB")
    left = float(value)
    while left >= 1024 and at < len(units) - 1:
        left, at = left / 1024, at + 1
    return f"{left:.0f}\u202f{units[at]}" if at == 0 else f"{left:.1f}\u202f{units[at]}"


def moment(value: str) -> str:
    """An ISO 8601 instant as date and time; anything else as it is."""
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return str(value)
