"""Which versions of the dataset there are, and which one a person means by a name.

What belongs here: names and history, from the numbered facts in the store. What does not: reading a
version (`version.py`), moving `current` (`current.py`).
"""

import re
from dataclasses import dataclass

from compalign_dagster import artifacts, decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.decisions import Decision
from compalign_dagster.errors import InputError
from compalign_dagster.selection.version import Version
from compalign_dagster.store import Store

KIND = "filtered_dataset"
CURRENT = "current"
SHORTEST = 4
"""Hex digits of a work key that may stand for it."""

_SHOWN = 8
_DIGITS = re.compile(rf"[0-9a-f]{{{SHORTEST},64}}")


@dataclass(frozen=True)
class Published:
    """A version that was published and still lies in the store."""

    artifact: Artifact
    made: Decision | None  # the newest materialisation of it; None when only `current` names it
    current: tuple[Decision, ...]  # each time it became `current`, oldest first

    @property
    def name(self) -> str:
        """Its work key's beginning: what people type."""
        return self.artifact.work_key[:12]


def resolve(store: Store, name: str) -> Version:
    """The version called `name`: `current`, a manifest key, or the beginning of a work key.

    Raises `InputError` when no version or more than one is meant; its text lists what there is.
    """
    return Version.open(find(store, name))


def find(store: Store, name: str) -> Artifact:
    """As `resolve`, the artifact alone."""
    loaded = (artifacts.load(store, key) for key in _meant(store, name))
    meant = [item for item in loaded if item is not None]
    if len(meant) == 1:
        return meant[0]
    raise InputError(
        f"dataset version {name!r} in {store.url}",
        expected=f"`{CURRENT}`, a manifest key, or the beginning (at least {SHORTEST} digits) of one of: "
        + _listed(history(store)),
        found=f"{len(meant)} of them",
        remedy="Give more digits." if len(meant) > 1 else "Name one of these, or materialise filtered_dataset first.",
    )


def history(store: Store) -> list[Published]:
    """Every version that is still in the store, in the order of its newest materialisation, oldest first.

    Versions that only `current` names come first. One manifest a version is read, and no file.
    """
    made = {fact.value["manifest"]: fact for fact in decisions.history(store, f"latest/{KIND}")}
    chosen: dict[str, list[Decision]] = {}
    for fact in decisions.history(store, CURRENT):
        chosen.setdefault(fact.value["manifest"], []).append(fact)
    order = sorted({*made, *chosen}, key=lambda key: (made[key].version if key in made else 0, key))
    found = [(key, artifacts.load(store, key)) for key in order]
    return [Published(item, made.get(key), tuple(chosen.get(key, ()))) for key, item in found if item is not None]


def _meant(store: Store, name: str) -> list[str]:
    """Manifest keys that a name may mean; no manifest is read."""
    if name == CURRENT:
        now = decisions.current(store, CURRENT)
        return [now.value["manifest"]] if now else []
    wanted = name.removesuffix("/manifest.json").removeprefix(f"{KIND}/")
    if not _DIGITS.fullmatch(wanted):
        return []
    exact = f"{KIND}/{wanted}/manifest.json"
    if wanted != name or store.exists(exact):
        return [exact]
    named = [*decisions.history(store, f"latest/{KIND}"), *decisions.history(store, CURRENT)]
    return sorted({key for fact in named if (key := fact.value["manifest"]).startswith(f"{KIND}/{wanted}")})


def _listed(known: list[Published]) -> str:
    shown = [item.name for item in reversed(known)][:_SHOWN]
    more = f" and {len(known) - _SHOWN} older" if len(known) > _SHOWN else ""
    return ", ".join(shown) + more if shown else "no version, for none was published"
