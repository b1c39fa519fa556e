"""Which store a URL means."""

from pathlib import Path
from typing import Any

from compalign_dagster.errors import InputError
from compalign_dagster.store.base import Store
from compalign_dagster.store.local import LocalStore


def open_store(url: str, client: Any = None) -> Store:
    """The store at a folder path or an `s3://bucket/prefix` URL.

    `client` is a boto3 S3 client; without one, boto3's own chain makes it (AWS_* variables, profiles).
    """
    if url.startswith("s3://"):
        from compalign_dagster.store.bucket import BucketStore

        return BucketStore(url, client)
    if "://" in url:
        raise InputError(
            f"store at {url.partition('://')[0]}://...",
            expected="a folder path or an s3:// URL",
            found="another scheme",
            remedy="Use a path without a scheme for a local folder.",
        )
    return LocalStore(Path(url))
