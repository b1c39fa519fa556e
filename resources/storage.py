"""The storage resource: where artifacts, crawl shards, labels and evaluation shards lie.

What does not belong here: reading or writing them, which is the core's.
"""

import dagster as dg

from compalign_dagster.artifacts import Artifact
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store, open_store


class Storage(dg.ConfigurableResource):
    """Folders or `s3://` prefixes of one code location, and the loopback address of its pages."""

    store_url: str
    landing_url: str
    labels_url: str
    evaluation_url: str
    pages_url: str

    @classmethod
    def from_settings(cls, settings: Settings) -> "Storage":
        """The storage that the settings name."""
        return cls(
            store_url=settings.store,
            landing_url=settings.landing,
            labels_url=settings.labels,
            evaluation_url=settings.evaluation,
            pages_url=settings.pages_url,
        )

    @property
    def store(self) -> Store:
        """The store of artifacts."""
        return open_store(self.store_url)

    @property
    def landing(self) -> Store:
        """Where crawl shards arrive."""
        return open_store(self.landing_url)

    @property
    def labels(self) -> Store:
        """Label exports and the shards of judged images."""
        return open_store(self.labels_url)

    @property
    def evaluation(self) -> Store:
        """Clean held-out shards."""
        return open_store(self.evaluation_url)

    def page_url(self, artifact: Artifact, name: str) -> str:
        """The address that serves a page of an artifact; browsers do not follow file links."""
        return f"{self.pages_url}/{artifact.file_key(name)}"
