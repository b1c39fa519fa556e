"""The storage resource: where artifacts, crawl shards, labels and evaluation shards lie.

What does not belong here: reading or writing them, which is the core's.
"""

import threading
from collections.abc import Iterable
from typing import Any

import dagster as dg
from dagster_aws.s3 import S3Resource
from pydantic import PrivateAttr

from compalign_dagster.artifacts import Artifact
from compalign_dagster.settings import Settings
from compalign_dagster.store import Store, open_store
from compalign_dagster.store.failures import make_client


class Storage(dg.ConfigurableResource):
    """Folders or `s3://` prefixes of one code location, and the loopback address of its pages.

    Credentials and client settings for buckets are those of `s3`, dagster-aws' `S3Resource`. As it stands it takes
    everything from boto3's own chain: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_DEFAULT_REGION,
    AWS_ENDPOINT_URL, roles. Its fields take precedence over the chain; a secret belongs there only as `dg.EnvVar`,
    because Dagster shows configuration. It retries `max_attempts` times after the first attempt, in botocore's
    standard mode, and waits 60 s for a connection or an answer.
    """

    store_url: str
    landing_url: str
    labels_url: str
    evaluation_url: str
    pages_url: str
    s3: dg.ResourceDependency[S3Resource]

    _client: Any = PrivateAttr(default=None)
    _making: Any = PrivateAttr(default_factory=threading.Lock)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Storage":
        """The storage that the settings name."""
        return cls(
            store_url=settings.store,
            landing_url=settings.landing,
            labels_url=settings.labels,
            evaluation_url=settings.evaluation,
            pages_url=settings.pages_url,
            s3=S3Resource(),
        )

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """All but `s3`, which holds credentials once an `EnvVar` is resolved."""
        return [(name, value) for name, value in super().__repr_args__() if name != "s3"]

    @property
    def store(self) -> Store:
        """The store of artifacts."""
        return self._open(self.store_url)

    @property
    def landing(self) -> Store:
        """Where crawl shards arrive."""
        return self._open(self.landing_url)

    @property
    def labels(self) -> Store:
        """Label exports and the shards of judged images."""
        return self._open(self.labels_url)

    @property
    def evaluation(self) -> Store:
        """Clean held-out shards."""
        return self._open(self.evaluation_url)

    def page_url(self, artifact: Artifact, name: str) -> str:
        """The address that serves a page of an artifact; browsers do not follow file links."""
        return f"{self.pages_url}/{artifact.file_key(name)}"

    def _open(self, url: str) -> Store:
        return open_store(url, self._bucket_client() if url.startswith("s3://") else None)

    def _bucket_client(self) -> Any:
        """One client for all buckets of this resource: its connections are shared, and making it takes a while."""
        with self._making:
            if self._client is None:
                self._client = make_client(self.s3.get_client)
            return self._client
