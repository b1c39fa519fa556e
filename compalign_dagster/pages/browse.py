"""Pages drawn when somebody asks: all pairs of a group, fifty at a time, and one pair with its decision.

A long list is reached by a ladder of places: any of 100 x 100 x 50 pairs of one reason is two steps away.
What belongs here: addresses, and which pairs a page holds. What does not: the server (`server.py`), and which pairs a
view holds (`selection.views`).
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypedDict
from urllib.parse import parse_qs, quote, unquote, urlencode

from compalign_dagster.errors import InputError
from compalign_dagster.pages.cards import gallery
from compalign_dagster.pages.pictures import cards
from compalign_dagster.pages.render import render
from compalign_dagster.selection import ladder, views
from compalign_dagster.selection.ladder import Step
from compalign_dagster.selection.pairs import index_keys, with_captions
from compalign_dagster.selection.place import Key, key_text, parse_key
from compalign_dagster.selection.reasons import MEANING
from compalign_dagster.selection.select import TIE_BREAK
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.versions import CURRENT, find
from compalign_dagster.selection.views import GROUPS, View
from compalign_dagster.store import Store

PAGE_PAIRS = 50
COUNTS_SQL = "select coalesce(reason, 'kept') as decision, count(*) as pairs from decided group by 1 order by 1"
_VERSIONS_OPEN = 4
_PAIR_ID = re.compile(r"[0-9a-f]{32}")
_FIGURES = ("reward", "human_fit", "domain", "caption_characters", "width", "height")


class Way(TypedDict):
    """Fields of a `Card`."""

    link: str
    command: str


def address(dataset: str, group: str = "", after: Key | None = None, until: Key | None = None) -> str:
    """The path of a group's pairs on the page server, behind one place of their order and up to another."""
    asked = {"after": after, "until": until}
    query = urlencode({name: key_text(key) for name, key in asked.items() if key is not None})
    path = "/".join(quote(part, safe="") for part in ("browse", dataset, group) if part)
    return f"/{path}?{query}" if query else f"/{path}"


def pair_address(dataset: str, pair_id: str) -> str:
    """The path of a pair and what was decided about it."""
    return f"/pair/{quote(dataset, safe='')}/{pair_id}"


def way(dataset: str, pair_id: str) -> Way:
    """What leads from a card to its pair: a link on pages that the server shows, a command on others (no `dataset`)."""
    link = pair_address(dataset, pair_id) if dataset else ""
    return {"link": link, "command": "" if link else f"compalign trace {pair_id}"}


class Browser:
    """The pages of a store's dataset versions; pictures come from `landing`."""

    def __init__(self, store: Store, landing: Store) -> None:
        self._store, self._landing = store, landing
        self._opened = lru_cache(_VERSIONS_OPEN)(lambda key: Version.open(find(store, key)))

    def __call__(self, path: str, query: str = "") -> bytes | None:
        """The page of `/browse[/DATASET[/GROUP]]` or `/pair[/DATASET]/PAIR_ID`; None for any other path.

        DATASET is as in `selection.versions`, `current` without it. Raises `InputError` when it, the group, the
        place or the pair is not there.
        """
        kind, *parts = (unquote(part) for part in path.strip("/").split("/"))
        if kind == "browse" and len(parts) <= 2:
            dataset, group = [*parts, CURRENT, ""][:2] if not parts else [*parts, ""][:2]
            return self._counts(dataset) if not group else self._group(dataset, group, query)
        if kind == "pair" and len(parts) in (1, 2):
            return self._pair(parts[0] if len(parts) == 2 else CURRENT, parts[-1])
        return None

    def _version(self, dataset: str) -> tuple[Version, str]:
        artifact = find(self._store, dataset)
        return self._opened(artifact.manifest_key), artifact.work_key[:12]

    def _counts(self, dataset: str) -> bytes:
        version, name = self._version(dataset)
        return render("browse.html", **self._frame(version, name), command=f"compalign browse --dataset {name}",
                      sql=COUNTS_SQL)  # fmt: skip

    def _group(self, dataset: str, group: str, query: str) -> bytes:
        version, name = self._version(dataset)
        asked = {key: parse_key(values[-1]) for key, values in parse_qs(query).items() if key in ("after", "until")}
        after, until = asked.get("after"), asked.get("until")
        view = View(group, limit=PAGE_PAIRS, after=after)
        rows = with_captions(views.rows(version, view), version.store, index_keys(version)).to_dicts()
        further = len(rows) == PAGE_PAIRS and not (after is None and views.size(version, group) == PAGE_PAIRS)
        return render(
            "browse.html",
            **self._frame(version, name, group),
            meaning=MEANING.get(group, ""),
            ladder=[_rung(name, group, step) for step in _steps(version, group, after, until)],
            gallery=gallery(cards(self._landing, rows, lambda row: pair_address(name, row["pair_id"])), PAGE_PAIRS),
            next=address(name, group, _place(rows[-1])) if further else "",
            whole=address(name, group) if after is not None else "",
            command=view.command(name),
            sql=views.sql(version, view),
        )

    def _pair(self, dataset: str, pair_id: str) -> bytes:
        version, name = self._version(dataset)
        found = version.find([pair_id]) if _PAIR_ID.fullmatch(pair_id) else None
        if found is None or not found.height:
            raise InputError(
                f"pair {pair_id[:64]!r} in dataset {name}",
                expected="32 hexadecimal digits of a pair that it decided on",
                found="no such pair",
                remedy="`compalign trace` looks in every version, and in the quarantine.",
            )
        shown = with_captions(found.head(PAGE_PAIRS), version.store, index_keys(version)).to_dicts()
        return render(
            "pair.html",
            name=name,
            pair_id=pair_id,
            count=found.height,
            gallery=gallery(cards(self._landing, shown), PAGE_PAIRS),
            occurrences=[_occurrence(name, row) for row in shown],
            command=f"compalign trace {pair_id}",
            sql=f"select * from decided where pair_id = '{pair_id}'",  # noqa: S608 - hexadecimal digits
        )

    def _frame(self, version: Version, name: str, group: str = "") -> dict[str, Any]:
        sizes = [(entry, views.size(version, entry)) for entry in GROUPS]
        return {
            "name": name,
            "group": group,
            "groups": [(entry, pairs, address(name, entry), MEANING.get(entry, "")) for entry, pairs in sizes if pairs],
            "pairs": dict(sizes).get(group, version.facts["pairs"]),
        }


def _steps(version: Version, group: str, after: Key | None, until: Key | None) -> list[Step]:
    """The ladder between two places; none where the page holds all that is there."""
    found = ladder.steps(version, group, after, until)
    return found if sum(step.pairs for step in found) > PAGE_PAIRS else []


def _rung(name: str, group: str, step: Step) -> dict[str, Any]:
    return {"link": address(name, group, step.after, step.until), "pairs": step.pairs, "reward": step.after[0],
            "pair_id": step.after[1]}  # fmt: skip


def _place(row: Mapping[str, Any]) -> Key:
    return (row["reward"], *(row[name] for name in TIE_BREAK))


def _occurrence(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    decision = row["reason"] or views.KEPT
    return {
        "decision": decision,
        "meaning": MEANING.get(decision, "among the best of its budget"),
        "group": address(name, decision),
        "place": [(key, row[key]) for key in ("shard", "key", "caption_index", "batch", "corpus")],
        "figures": [(key, row[key]) for key in _FIGURES],
    }
