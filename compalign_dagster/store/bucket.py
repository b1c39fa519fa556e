"""A store in a bucket, through boto3.

What belongs here: keys, and who has won a write. What does not: what a failure means (`failures.py`), how a broken
body goes on (`body.py`), how the bytes get there (`upload.py`).
"""

import atexit
import hashlib
import logging
import os
import random
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from compalign_dagster.errors import InputError
from compalign_dagster.store.base import (
    InconclusiveWriteError,
    Listed,
    ObjectMissingError,
    StoreError,
    changed,
    checked_parts,
    hidden,
)
from compalign_dagster.store.body import Body, as_file, whole
from compalign_dagster.store.failures import FAILURES, code_of, explain, is_refusal, make_client, said, status_of
from compalign_dagster.store.upload import WRITE_ID, Upload

PART_BYTES = 32 << 20
PROBE = ".compalign/conditional-writes"  # below the store's prefix; hidden, so not an object of the store

_ATTEMPTS = 5  # puts whose outcome was found out to be nothing, in a row
_PAUSE = 0.2  # s after the first of them, then doubling
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_LOG = logging.getLogger(__name__)
_proven: set[tuple[str, str, bool]] = set()  # (endpoint, store URL, in parts) of servers seen to keep the condition
_proving = threading.Lock()


class BucketStore:
    """A prefix of a bucket. Threads may share it; a forked child needs a store of its own.

    Safety rests on conditional writes: `If-None-Match: *` on every put and on every completion of a multipart upload.
    A server that does not know them is refused before the first write (`require_conditional_writes`), because
    manifests and decisions would overwrite each other there. Reading from such a server is fine.

    The client repeats what was throttled, failed in the server or broke. A repetition can hide that the first attempt
    landed, so every write carries an id in the object's metadata, and after a conflict or a doubtful failure the
    object is asked whose it is. Only `delete` deletes; an abort takes back the parts of an own upload that has
    published nothing. A bucket that keeps versions keeps what was deleted, until its own rules let it go.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`.
        client: a boto3 S3 client; without one, boto3's own chain makes it when it is needed.
        part_bytes: a larger file is uploaded in parts of this size. At least 5 MiB, which is S3's own limit.
    """

    def __init__(self, url: str, client: Any = None, *, part_bytes: int = PART_BYTES) -> None:
        self._bucket, self._root = _parse(url)
        self.url = f"s3://{self._bucket}/{self._root}".rstrip("/")
        self._given, self._part_bytes = client, part_bytes
        self._making = threading.Lock()

    @property
    def client(self) -> Any:
        """The boto3 client."""
        with self._making:
            if self._given is None:
                self._given = make_client(_default_client)
            return self._given

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectMissingError:
            return False
        return True

    def stat(self, key: str) -> Listed:
        place, url = self._place(key)
        try:
            size, etag = said(self.client.head_object(**place), "ContentLength", "ETag")
        except FAILURES as error:
            raise explain(error, "look at", url, self.client) from None
        return Listed(key, size, etag.strip('"'))

    def read(self, key: str) -> bytes:
        return whole(self._body(key))

    def read_range(self, key: str, offset: int, length: int, *, stamp: str | None = None) -> bytes:
        if length:
            return whole(self._body(key, offset, offset + length, stamp))
        if stamp not in (None, self.stat(key).stamp):
            raise changed(f"read {self.url}/{key}")
        return b""

    def open(self, key: str, *, stamp: str | None = None) -> BinaryIO:
        return as_file(self._body(key, stamp=stamp))

    def _body(self, key: str, offset: int = 0, end: int | None = None, stamp: str | None = None) -> Body:
        place, url = self._place(key)
        return Body(self.client, place, url, offset, end, stamp)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Listed]:
        """Objects in key order, page by page."""
        start = {"StartAfter": self._root + after} if after else {}
        last = ""
        for name, size, etag in self._entries(prefix, "Contents", "Key", "Size", "ETag", **start):
            if name <= last or not name.startswith(self._root + prefix):
                raise self._unordered(name, last)
            last, key = name, name.removeprefix(self._root)
            if key > after and not key.endswith("/") and not hidden(key) and self._can_be_named(key):
                yield Listed(key, size, etag.strip('"'))

    def folders(self, prefix: str = "") -> Iterator[str]:
        for (name,) in self._entries(prefix, "CommonPrefixes", "Prefix", Delimiter="/"):
            key = name.removeprefix(self._root)
            if not hidden(key) and self._can_be_named(key[:-1]):
                yield key

    def _entries(self, prefix: str, kind: str, *names: str, **request: str) -> Iterator[tuple[Any, ...]]:
        """What a listing says under these names, entry by entry."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._root + prefix, **request
        )
        try:
            for page in pages:
                said(page, "IsTruncated")
                for entry in page.get(kind, ()):
                    yield said(entry, *names)
        except FAILURES as error:
            raise explain(error, "list", f"{self.url}/{prefix}", self.client) from None

    def _can_be_named(self, key: str) -> bool:
        try:
            checked_parts(key)
        except InputError:
            _LOG.warning("%s holds an object named %r, which cannot be used: rename it.", self.url, key)
            return False
        return True

    def _unordered(self, name: str, last: str) -> StoreError:
        return StoreError(
            f"list {self.url}",
            expected="the keys below it, each once, in the order of their bytes",
            found=f"{name!r} after {last!r}",
            remedy="Use a general purpose bucket: the others list in no order, so nothing could be resumed.",
        )

    def put_new(self, key: str, source: bytes | Path) -> bool:
        """Publish an object whole, or return False because somebody else has taken the key.

        Raises:
            InconclusiveWriteError: it cannot be found out which.
            StoreError: nothing was published, as far as can be seen.
        """
        place, url = self._place(key)
        self.require_conditional_writes()
        if isinstance(source, Path) and source.stat().st_size > self._part_bytes:
            if self.exists(key):
                return False  # spares the transfer; of two who see nothing here, the completion decides
            self.require_conditional_writes(in_parts=True)
        write_id = uuid.uuid4().hex
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE * 2**attempt * random.uniform(0.25, 0.5))
            upload = Upload(self.client, place, write_id, self._part_bytes)
            try:
                upload.send(source)
                return True
            except FAILURES as error:
                failure = error
            owner = None if is_refusal(failure) else self._owner(place, url, failure)
            if owner == write_id:
                return True
            upload.abandon()
            if owner is not None:
                return False
            if is_refusal(failure):
                break
        raise self._not_put(failure, url) from None

    def _owner(self, place: dict[str, str], url: str, failure: Exception) -> str | None:
        """The write id of the object that is there after a failed put, "" if it has none, None if nothing is there."""
        try:
            facts = self.client.head_object(**place)
            said(facts, "ETag")
        except FAILURES as error:
            if status_of(error) == 404:
                return None
            raise InconclusiveWriteError(
                f"put {url}",
                expected="to learn whether the object was written",
                found=f"{code_of(failure)}, then {code_of(error)} when asked",
                remedy="Run again: that finds the object or writes it, and never replaces one.",
            ) from None
        return facts["Metadata"].get(WRITE_ID, "")

    def _not_put(self, failure: Exception, url: str) -> StoreError:
        if status_of(failure) in {404, 412} and code_of(failure) != "NoSuchBucket":
            return StoreError(
                f"put {url}",
                expected="the object to be written or to be there",
                found=f"{code_of(failure)} again and again, and no object",
                remedy="Check whether something else writes and removes objects below this prefix.",
            )
        return explain(failure, "put", url, self.client)

    def require_conditional_writes(self, *, in_parts: bool = False) -> None:
        """Find out whether the server keeps `If-None-Match`, once for a process: at most two tiny puts of a hidden key.

        Some keep it of a put and not of the completion of an upload in parts: that is found out on its own, after it.

        Raises:
            StoreError: it does not; nothing may be published there.
        """
        proof = (self.client.meta.endpoint_url, self.url, in_parts)
        with _proving:
            if proof in _proven:
                return
            if not (self._refuses_a_completion() if in_parts else self._refuses_a_second_put()):
                raise StoreError(
                    f"store {self.url}",
                    expected="a server that keeps conditional writes (If-None-Match)",
                    found="none: it replaces an object that is already there",
                    remedy="Refused to publish. Use a server that has them, or a folder for COMPALIGN_STORE.",
                )
            _proven.add(proof)

    def _refuses_a_second_put(self) -> bool:
        place, url = self._place(PROBE)
        for _ in range(2):
            try:
                self.client.put_object(**place, Body=b"", IfNoneMatch="*")
            except FAILURES as error:
                if status_of(error) in {409, 412}:
                    return True
                if status_of(error) == 501:
                    return False
                raise explain(error, "put", url, self.client) from None
        return False

    def _refuses_a_completion(self) -> bool:
        place, url = self._place(PROBE)
        upload = Upload(self.client, place, "", self._part_bytes)
        try:
            upload.send_parts([b"x"])
        except FAILURES as error:
            upload.abandon()
            if status_of(error) in {409, 412}:
                return True
            if status_of(error) == 501:
                return False
            raise explain(error, "put", url, self.client) from None
        return False

    def replace(self, key: str, source: bytes | Path, *, stamp: str) -> None:
        """One put that holds only for the object with this ETag. A bucket that keeps versions keeps the older one."""
        place, url = self._place(key)
        data = source if isinstance(source, bytes) else source.read_bytes()
        try:
            self.client.put_object(**place, Body=data, IfMatch=f'"{stamp}"')
        except FAILURES as error:
            if status_of(error) not in {409, 412}:
                raise explain(error, "replace", url, self.client) from None
            if not self.exists(key) or self.read(key) != data:  # a repetition may hide that the first attempt landed
                raise changed(f"replace {url}") from None

    def delete(self, key: str) -> None:
        place, url = self._place(key)
        try:
            self.client.delete_object(**place)
        except FAILURES as error:
            failure = explain(error, "delete", url, self.client)
            if not isinstance(failure, ObjectMissingError):
                raise failure from None

    def fetch(self, key: str) -> Path:
        """A copy in a folder that this process removes at its end; made once for each state of the object."""
        stamp = self.stat(key).stamp
        name = hashlib.sha256(f"{self.url}/{key}\0{stamp}".encode()).hexdigest()[:32]
        path = _cache() / name / key.rpartition("/")[2][-60:]
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".{uuid.uuid4().hex}.part")
            with self.open(key, stamp=stamp) as stream, temporary.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            temporary.replace(path)
        return path

    def _place(self, key: str) -> tuple[dict[str, str], str]:
        checked_parts(key)
        return {"Bucket": self._bucket, "Key": self._root + key}, f"{self.url}/{key}"


def _parse(url: str) -> tuple[str, str]:
    """Bucket and prefix of an `s3://` URL; the prefix is empty or ends in "/"."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket):  # "key:secret@bucket" is one, so it is not repeated
        raise InputError(
            "store s3://...",
            expected="s3://bucket or s3://bucket/prefix",
            found="something that is no bucket name before the first slash",
            remedy="Credentials do not belong into a URL: set AWS_ACCESS_KEY_ID or AWS_PROFILE.",
        )
    prefix = prefix.strip("/")
    return bucket, "/".join(checked_parts(prefix)) + "/" if prefix else ""


def _default_client() -> Any:
    """A client of boto3's own chain: AWS_* variables (AWS_ENDPOINT_URL too), profiles, roles."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 5})
    return boto3.session.Session().client("s3", config=config)


_caches: dict[int, Path] = {}


def _cache() -> Path:
    """This process's folder of copies. A forked child has its own, and removes no other."""
    owner = os.getpid()
    if owner not in _caches:
        folder = Path(tempfile.mkdtemp(prefix="compalign-fetch-"))
        _caches[owner] = folder
        atexit.register(_remove_cache, owner, folder)
    return _caches[owner]


def _remove_cache(owner: int, folder: Path) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
