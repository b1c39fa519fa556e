"""Where artifacts live: immutable objects under slash-separated keys, on a disk or in a bucket.

Nothing is ever overwritten: `put_new` publishes a whole object or reports that the key is taken. What people ask to be
rid of is deleted by name.
`BucketStore` is imported by whoever opens an `s3://` URL: a machine that only trains has no boto3.
What belongs here: bytes and keys. What does not: manifests (`artifacts.py`) and meaning.
"""

from compalign_dagster.store.base import (
    AccessDeniedError,
    InconclusiveWriteError,
    Listed,
    ObjectChangedError,
    ObjectMissingError,
    Store,
    StoreError,
    TransientStoreError,
)
from compalign_dagster.store.local import LocalStore
from compalign_dagster.store.opening import open_store
from compalign_dagster.store.ranged import seekable

__all__ = [
    "AccessDeniedError",
    "InconclusiveWriteError",
    "Listed",
    "LocalStore",
    "ObjectChangedError",
    "ObjectMissingError",
    "Store",
    "StoreError",
    "TransientStoreError",
    "open_store",
    "seekable",
]
