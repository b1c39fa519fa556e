"""Fingerprints: the same for what looks the same, different for what does not, on every machine."""

import hashlib
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from compalign_dagster.crawl.fingerprints import caption_shape, perceptual_hash
from compalign_dagster.crawl.index import index_shard
from compalign_dagster.images import inspect
from tests.support import shard_builder as build

_ALIKE, _DIFFERENT = 8, 16


def photo(seed: int, side: tuple[int, int] = (640, 480)) -> Image.Image:
    """Soft shapes with fine grain, as photographs have."""
    noise = np.random.default_rng(seed)
    layers = np.zeros((side[1], side[0], 3))
    for cells, weight in ((4, 90.0), (9, 40.0), (40, 12.0)):
        grid = Image.fromarray(noise.integers(0, 256, (cells, cells, 3), np.uint8))
        layers += weight / 255 * np.asarray(grid.resize(side, Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(layers + 40 + noise.normal(0, 3, layers.shape), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def hash_of(data: bytes) -> int:
    return int(perceptual_hash(inspect(data).thumbnail), 16)


def distance(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@pytest.fixture(scope="module")
def photos():
    return [photo(seed) for seed in range(12)]


def test_an_image_that_was_encoded_again_or_halved_is_few_bits_away(photos):
    for image in photos:
        original = hash_of(encoded(image, quality=92))
        again = hash_of(encoded(Image.open(io.BytesIO(encoded(image, quality=92))), quality=75))
        half = hash_of(encoded(image.resize((320, 240), Image.Resampling.LANCZOS), quality=90))
        lossless = hash_of(encoded(image, "PNG"))
        webp = hash_of(encoded(image, "WEBP", quality=80))
        grey = hash_of(encoded(image.convert("L"), quality=90))
        assert max(distance(original, other) for other in (again, half, lossless, webp, grey)) <= _ALIKE


def test_different_photos_are_many_bits_away(photos):
    hashes = [hash_of(encoded(image, quality=92)) for image in photos]
    assert min(distance(one, other) for one, other in itertools.combinations(hashes, 2)) >= _DIFFERENT


def test_a_hash_that_ignored_the_pixels_would_be_noticed(photos):
    planted = [hashlib.sha256(encoded(image, quality=92)).digest()[:8] for image in photos]
    again = [hashlib.sha256(encoded(image, quality=75)).digest()[:8] for image in photos]
    far = [distance(int.from_bytes(a), int.from_bytes(b)) for a, b in zip(planted, again, strict=True)]
    assert max(far) > _ALIKE, "a digest is no perceptual hash"


def test_an_image_turned_by_its_exif_has_the_hash_of_the_upright_one(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photos[0].transpose(Image.Transpose.ROTATE_90), quality=92, exif=exif)
    upright = hash_of(encoded(photos[0], quality=92))
    assert distance(hash_of(turned), upright) <= _ALIKE
    assert distance(hash_of(encoded(photos[0].transpose(Image.Transpose.ROTATE_90))), upright) >= _DIFFERENT


def test_the_hash_is_exact_whole_number_arithmetic():
    ramp = Image.fromarray((np.multiply.outer(np.arange(32) * 3, np.arange(32) * 5) % 256).astype(np.uint8))
    assert perceptual_hash(ramp) == "804d0e0c7f7f2e4d"
    assert perceptual_hash(Image.new("L", (32, 32), 0)) == "0" * 16
    assert perceptual_hash(Image.new("L", (32, 32), 200)) == "8" + "0" * 15


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red ball", (10, 3, 0.0, 0.0)),
        ("buy buy BUY now", (15, 4, 0.5, 0.0)),
        ("IMG_2041.jpg 2041", (17, 2, 0.0, 10 / 16)),
        ("100% !!!", (8, 2, 0.0, 1.0)),
        ("日本語 été", (7, 2, 0.0, 0.0)),
        ("हिन्दी", (6, 1, 0.0, 0.0)),
    ],
)
def test_a_captions_shape_is_counted(text, expected):
    shape = caption_shape(text)
    assert (shape.characters, shape.words, shape.repetition, shape.non_letters) == pytest.approx(expected)


def test_an_index_has_the_fingerprints_of_each_pair(tmp_path, photos):
    image = encoded(photos[0], quality=92)
    data = build.tar([("a.jpg", image), ("a.txt", b"look look, 2 cats")])
    [row] = index_shard(build.place(tmp_path, data)).pairs.to_pylist()
    assert row["image_phash"] == f"{hash_of(image):016x}"
    assert row["image_sha256"] == hashlib.sha256(image).hexdigest()
    assert (row["caption_characters"], row["caption_words"]) == (17, 4)
    assert row["caption_repetition"] == pytest.approx(0.0)
    assert row["caption_non_letters"] == pytest.approx(2 / 14)
