"""Thumbnails, contact sheets and event plots stay within their budgets."""

import base64
import io

import pytest
from PIL import Image

from compalign_dagster.pages.evaluation import downstream_picture
from compalign_dagster.pages.filtered import histogram_picture
from compalign_dagster.pages.images import SHEET_BYTES, THUMBNAIL_BYTES, contact_sheet, thumbnail_uri
from compalign_dagster.pages.plots import PNG_BYTES, thinned
from compalign_dagster.pages.reward import curves_picture
from tests.unit.pages import builders


@pytest.mark.parametrize("data", [builders.picture(), builders.noise(), builders.picture(size=(4000, 40))])
def test_thumbnail_is_a_small_jpeg(data):
    uri = thumbnail_uri(data)
    assert uri is not None
    jpeg = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert len(jpeg) <= THUMBNAIL_BYTES
    assert max(Image.open(io.BytesIO(jpeg)).size) <= 256


@pytest.mark.parametrize("data", [b"", b"nope", builders.picture()[:200], b"<svg onload='alert(1)'/>"])
def test_no_image_gives_no_thumbnail(data):
    assert thumbnail_uri(data) is None


def test_contact_sheet_of_anything_fits_an_event():
    sheet = contact_sheet([builders.noise()] * 30 + [b"nope", Image.new("RGBA", (10, 500))], columns=8)
    assert len(sheet) <= SHEET_BYTES
    assert Image.open(io.BytesIO(sheet)).format == "JPEG"
    assert contact_sheet([], columns=8)


def test_contact_sheet_leaves_its_images_alone():
    image = Image.new("RGB", (500, 300))
    contact_sheet([image])
    assert image.size == (500, 300)


def test_event_plots_are_small_and_repeatable():
    histogram = {"edges": [0.0, 0.5, 1.0], "kept": [0, 3], "dropped": [6, 0]}
    made = [
        curves_picture({"terms": {"preference": [1.0 / step for step in range(1, 5000)]}}),
        histogram_picture(histogram, {"cut": 0.5}),
        downstream_picture(builders.report()),
    ]
    assert all(png.startswith(b"\x89PNG") and len(png) <= PNG_BYTES for png in made)
    assert histogram_picture(histogram, {"cut": 0.5}) == made[1]


def test_thinned_curve_keeps_its_mean_and_end():
    points = [(step, float(step)) for step in range(1, 1001)]
    thin = thinned(points, 100)
    assert len(thin) == 100
    assert thin[-1][0] == 1000
    assert sum(y for _, y in thin) / 100 == pytest.approx(500.5)
