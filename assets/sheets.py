"""Contact sheets of images that lie in landed shards, with a list of whose they are, by which a purge finds them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from assets.reporting import PREVIEW
from compalign_dagster.crawl.shards import Shard, read_member
from compalign_dagster.errors import InputError
from compalign_dagster.store import ObjectMissingError
from compalign_dagster.versions import digest_bytes
from resources.storage import Storage

SIDE = 8
_SHOWN = "preview.txt"  # nobody else can tell what is on a picture
_BLANK = Image.new("RGB", (1, 1), (128, 132, 138))  # the sheet's background

log = logging.getLogger(f"compalign_dagster.{__name__}")


def sheet(storage: Storage, rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, bytes]:
    """The views of an artifact that shows these images in rows, 8 of 8 at most; none without images.

    An image has `shard`, `key`, `image_offset`, `image_length`, `image_sha256`; where other bytes lie by now, it is
    not shown.
    """
    from compalign_dagster.pages.images import contact_sheet

    shown = [list(row[:SIDE]) for row in rows[:SIDE] if row]
    if not shown:
        return {}
    pictures: list[Image.Image | bytes] = []
    for row in shown:
        pictures += [_picture(storage, image) for image in row] + [_BLANK] * (SIDE - len(row))
    whose = "".join(f"{image['shard']} {image['key']} {image['image_sha256']}\n" for row in shown for image in row)
    return {PREVIEW: contact_sheet(pictures, columns=SIDE), _SHOWN: whose.encode()}


def _picture(storage: Storage, image: Mapping[str, Any]) -> bytes:
    """An image's bytes, empty where others lie by now."""
    shard = Shard(image["shard"], storage.landing, image["shard"])
    try:
        data = read_member(shard, image["image_offset"], image["image_length"])
    except (InputError, ObjectMissingError) as error:
        log.warning("an image is not shown: %s", error)
        return b""
    return data if digest_bytes(data) == image["image_sha256"] else b""
