"""`current`: the filtered dataset that readers should use, a numbered fact that moves last."""

from compalign_dagster import artifacts, decisions
from compalign_dagster.artifacts import Artifact
from compalign_dagster.store import Store

_NAME = "current"


def move(dataset: Artifact) -> decisions.Decision:
    """Make this dataset the current one; nothing is written when it already is."""
    now = decisions.current(dataset.store, _NAME)
    if now is not None and now.value["manifest"] == dataset.manifest_key:
        return now
    value = {"manifest": dataset.manifest_key, "data_version": dataset.data_version}
    return decisions.decide(dataset.store, _NAME, value, after=now.version if now else 0)


def read(store: Store) -> Artifact | None:
    """The current dataset, or None before the first."""
    now = decisions.current(store, _NAME)
    return artifacts.load(store, now.value["manifest"]) if now else None
