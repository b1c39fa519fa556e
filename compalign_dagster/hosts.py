"""The host that a URL is of, as it is compared: the same whatever way it is written.

What does not belong here: whether a host may be fetched from (`landing/`), and what a host is listed for
(`selection/blocks.py`).
"""

import re
import unicodedata
from ipaddress import ip_address
from urllib.parse import unquote

import polars as pl

_AUTHORITY = re.compile(r"[a-z][a-z0-9+.-]*:[/\\]+([^/\\?#]*)", re.IGNORECASE)
_IGNORED = str.maketrans("", "", "\t\n\r")  # browsers leave them out of a URL
_HEAD = r"(?s)^[^/\\]*[/\\][/\\\t\n\r]*[^/\\?#]*[/\\?#]?"
"""All of a URL that its host depends on, for Rust's regular expressions."""


def host_of(url: str) -> str | None:
    """The host of a URL as it is compared: as browsers find it, lower case, IDNA; None where there is none."""
    found = _AUTHORITY.match(url.translate(_IGNORED).strip())
    if not found:
        return None
    place = found.group(1).rpartition("@")[2]
    if not place.startswith("["):
        return normal_host(place.partition(":")[0])
    try:
        return ip_address(place[1:].partition("]")[0]).compressed
    except ValueError:
        return None


def hosts_of(urls: pl.Series) -> pl.Series:
    """`host_of` each URL, strings, null where there is none; worked out once for all URLs that begin alike."""
    heads = urls.cast(pl.String).str.extract(_HEAD, 0)
    known = {head: host_of(head) for head in heads.unique().drop_nulls()}
    return pl.Series(urls.name, [known.get(head) for head in heads], pl.String)


def normal_host(host: str) -> str | None:
    """Lower case, compatibility forms and full-width dots resolved, punycode, without a final dot."""
    text = unicodedata.normalize("NFKC", unquote(host)).casefold().replace("\u3002", ".").strip(".")
    if not text.isascii():
        try:
            text = text.encode("idna").decode()
        except UnicodeError:
            return text
    return text or None
