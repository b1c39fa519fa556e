"""Which artifact of a kind is the newest materialised one, as numbered facts in the store.

A work key names work but not the order in which people asked for it: after a setting is moved back,
the older artifact is the one in use again. Stages find their inputs here instead of in Dagster's
database, so that the command line, another deployment and an auditor see the same chain.
"""

from collections.abc import Callable

from compalign_dagster import artifacts, decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.errors import CompalignError
from compalign_dagster.store import Store


def _name(kind: str, partition: str | None) -> str:
    return "/".join(part for part in ("latest", kind, partition) if part)


def _pointer(artifact: Artifact) -> dict[str, str]:
    return {
        "manifest": artifact.manifest_key,
        "data_version": artifact.data_version,
        "manifest_sha256": artifact.manifest_sha256,
    }


def latest(store: Store, kind: str, partition: str | None = None) -> Artifact | None:
    """The newest materialised artifact of a kind, or None."""
    fact = decisions.current(store, _name(kind, partition))
    return artifacts.load(store, fact.value["manifest"]) if fact else None


def require(store: Store, kind: str, partition: str | None = None) -> Artifact:
    """The newest materialised artifact of a kind; an error that says what to materialise otherwise."""
    return numbered(store, kind, partition)[0]


def numbered(store: Store, kind: str, partition: str | None = None) -> tuple[Artifact, int]:
    """As `require`, and its number: a newer materialisation has a larger one, of an old artifact too."""
    fact = decisions.current(store, _name(kind, partition))
    found = artifacts.load(store, fact.value["manifest"]) if fact else None
    if fact is None or found is None:
        raise CompalignError(
            f"{kind}{f' of {partition}' if partition else ''} in {store.url}",
            expected="a published artifact",
            found="none",
            remedy=f"Materialise {kind} first.",
        )
    return found, fact.version


def point(artifact: Artifact) -> None:
    """Make this the newest artifact of its kind; nothing is written when it already is."""

    def choose(newest: decisions.Decision | None) -> dict[str, str] | None:
        if newest and newest.value["manifest"] == artifact.manifest_key:
            return None
        return _pointer(artifact)

    decisions.move(artifact.store, _name(artifact.kind, artifact.partition), choose)


def advance(store: Store, kind: str, make: Callable[[Artifact | None], Artifact]) -> Artifact:
    """The newest artifact of a kind after `make` has followed it by another, or returned it as it is.

    `make` is asked again when somebody else was faster, with what they have made: nothing is lost of either.
    """

    def choose(newest: decisions.Decision | None) -> dict[str, str] | None:
        before = artifacts.load(store, newest.value["manifest"]) if newest else None
        after = make(before)
        if before is not None and after.manifest_key == before.manifest_key:
            return None
        return _pointer(after)

    fact = decisions.move(store, _name(kind, None), choose)
    found = artifacts.load(store, fact.value["manifest"]) if fact else None
    assert found is not None, "there is a newest artifact after one was made"
    return found


def history(store: Store, kind: str, partition: str | None = None) -> list[Artifact]:
    """Every artifact of a kind that was ever the newest, oldest first."""
    facts = decisions.history(store, _name(kind, partition))
    found = (artifacts.load(store, fact.value["manifest"]) for fact in facts)
    return [artifact for artifact in found if artifact is not None]


def reuse_or_make(
    store: Store, kind: str, work_key: str, make: Callable[[], Artifact], partition: str | None = None
) -> tuple[Artifact, bool]:
    """The artifact of this work, made only when it is not there yet, and whether it was there.

    Either way it becomes the newest of its kind: asking for work that is done is a materialisation too.
    """
    found = artifacts.find(store, kind, work_key, partition)
    artifact = found or make()
    point(artifact)
    return artifact, found is not None
