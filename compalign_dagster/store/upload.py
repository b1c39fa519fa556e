"""One attempt to put an object into a bucket: one request, or parts for a large file.

What does not belong here: whether to try again, and who has won.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compalign_dagster.store.failures import FAILURES, code_of, said

WRITE_ID = "compalign-write"  # the metadata entry that tells whose write an object is

_MAX_PARTS = 10_000
_LOG = logging.getLogger(__name__)


class Upload:
    """An attempt that publishes with `If-None-Match: *`, so never replaces an object.

    Args:
        client: a boto3 S3 client.
        place: `Bucket` and `Key`.
        write_id: goes into the object's metadata.
        part_bytes: a larger file is sent in parts of this size, one at a time.
    """

    def __init__(self, client: Any, place: dict[str, str], write_id: str, part_bytes: int) -> None:
        self._client, self._place = client, place
        self._metadata = {WRITE_ID: write_id}
        self._part_bytes = part_bytes
        self._id: str | None = None

    def send(self, source: bytes | Path) -> None:
        """Publish, or raise what the client raises."""
        if isinstance(source, bytes):
            self._put(source)
        elif (size := source.stat().st_size) <= self._part_bytes:
            with source.open("rb") as stream:
                self._put(stream)
        else:
            part_bytes = max(self._part_bytes, -(-size // _MAX_PARTS))
            with source.open("rb") as stream:
                self.send_parts(iter(lambda: stream.read(part_bytes), b""))

    def _put(self, body: Any) -> None:
        said(self._client.put_object(**self._place, Body=body, Metadata=self._metadata, IfNoneMatch="*"), "ETag")

    def send_parts(self, pieces: Iterable[bytes]) -> None:
        """Publish what goes up in parts, or raise what the client raises."""
        (self._id,) = said(self._client.create_multipart_upload(**self._place, Metadata=self._metadata), "UploadId")
        parts: list[dict[str, Any]] = []
        for number, data in enumerate(pieces, start=1):
            sent = self._client.upload_part(**self._place, UploadId=self._id, PartNumber=number, Body=data)
            (etag,) = said(sent, "ETag")
            checksums = {name: value for name, value in sent.items() if name.startswith("Checksum")}
            parts.append({"PartNumber": number, "ETag": etag, **checksums})
        done = self._client.complete_multipart_upload(
            **self._place, UploadId=self._id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
        said(done, "ETag")

    def abandon(self) -> None:
        """Give back the parts of an attempt that has published nothing. Touches no object."""
        if self._id is None:
            return
        try:
            self._client.abort_multipart_upload(**self._place, UploadId=self._id)
        except FAILURES as error:
            if code_of(error) != "NoSuchUpload":  # else an earlier attempt to abort has got through
                _LOG.warning(
                    "The parts of an unfinished upload stay in bucket %s (%s): a lifecycle rule should remove such.",
                    self._place["Bucket"],
                    code_of(error),
                )
