"""Bytes and what they carry - EXIF, IPTC, XMP, ICC, a signed C2PA manifest - come through unchanged, to the trainer."""

import hashlib
import io
import json
import tarfile

import pytest
from PIL import Image

from compalign_dagster.crawl.shards import Shard
from compalign_dagster.selection.pairs import kept_frames
from compalign_dagster.selection.resharding import reshard
from compalign_dagster.selection.training import KeptPairs, Loader
from tests.support.credentials import CREATOR, manifest_state, signed_picture, told
from tests.support.shard_builder import tar
from tests.support.small_version import small_store

PICTURES = 4
WHOLE = {"exif": CREATOR, "iptc": CREATOR, "xmp": CREATOR, "icc": "a profile", "c2pa": "Valid"}


@pytest.fixture(scope="module")
def pictures():
    return [signed_picture(at) for at in range(PICTURES)]


@pytest.fixture(scope="module")
def small(tmp_path_factory, pictures):
    """A store whose second batch is a shard of signed pictures: landed, indexed, scored, all kept."""
    small = small_store(tmp_path_factory.mktemp("credentials"), batches=1, shards=1, pairs=4)
    members = []
    for at, data in enumerate(pictures):
        members += [(f"signed{at}.jpg", data), (f"signed{at}.json", json.dumps({"caption": f"picture {at}"}).encode())]
    path = small.home / "landing" / "signed" / "00010.tar"
    path.parent.mkdir()
    path.write_bytes(tar(members))
    small.settle()
    return small


@pytest.fixture(scope="module")
def version(small):
    return small.filter(keep_fraction="1")


def digests(images):
    return sorted(hashlib.sha256(image).hexdigest() for image in images)


def signed_of(samples):
    return [sample["image"] for sample in samples if sample["shard"].startswith("signed/")]


def test_the_pictures_carry_every_credential(pictures):
    assert [told(data) for data in pictures] == [WHOLE] * PICTURES


def test_they_come_through_landing_index_version_and_training_reader_unchanged(small, version, pictures):
    images = signed_of(KeptPairs(version, small.landing))
    assert digests(images) == digests(pictures)
    assert [told(image) for image in images] == [WHOLE] * PICTURES
    (batch,) = Loader(KeptPairs(version, small.landing), 100)
    columns = zip(batch["image"], batch["shard"], strict=True)
    assert digests(image for image, shard in columns if shard.startswith("signed/")) == digests(pictures)


def test_they_come_through_new_tars_unchanged(small, version, pictures, tmp_path):
    shards = {name: Shard(name, small.landing, name) for name in version.shards["shard"]}
    images = []
    for path in reshard(kept_frames(version), shards, tmp_path / "shards"):
        with tarfile.open(path) as made:
            members = {member.name: made.extractfile(member).read() for member in made}
        for name, data in members.items():
            facts = json.loads(members[f"{name.partition('.')[0]}.json"])
            if not name.endswith(".json") and facts["source"]["shard"].startswith("signed/"):
                images.append(data)
    assert digests(images) == digests(pictures)
    assert [told(image) for image in images] == [WHOLE] * PICTURES


def test_a_stage_that_encodes_again_loses_them(pictures):
    """The control: the planted stage every pipeline that resizes has."""
    out = io.BytesIO()
    Image.open(io.BytesIO(pictures[0])).save(out, "JPEG", quality=92)
    assert hashlib.sha256(out.getvalue()).digest() != hashlib.sha256(pictures[0]).digest()
    assert {name for name, said in told(out.getvalue()).items() if said is None} >= {"exif", "iptc", "c2pa"}


def test_a_manifest_on_other_pixels_is_no_longer_valid(pictures):
    forged = bytearray(pictures[0])
    forged[-40] ^= 1
    assert manifest_state(bytes(forged)) == "Invalid"
