"""Decoding images from outside: whole and upright, or refused for a named reason."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compalign_dagster import images
from compalign_dagster.errors import CompalignError
from compalign_dagster.images import MAX_PIXELS, ImageFacts, ImageRejected, _opened, decode, inspect
from tests.support.shard_builder import picture, png_bomb


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def rejection(data: bytes, **options: int) -> str:
    """The reason; `decode` and `inspect` must agree on it."""
    with pytest.raises(ImageRejected) as decoding:
        decode(data, **options)
    with pytest.raises(ImageRejected) as inspecting:
        inspect(data, **options)
    assert decoding.value.reason == inspecting.value.reason
    return decoding.value.reason


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_supported_formats_decode_to_rgb_and_are_named(form):
    data = picture(1, form=form)
    assert decode(data).mode == "RGB"
    assert decode(data).size == (32, 24)
    facts = inspect(data)
    assert facts == ImageFacts(form, 32, 24, facts.thumbnail)
    assert (facts.thumbnail.mode, facts.thumbnail.size) == ("L", (32, 32))


def test_the_name_of_a_file_does_not_matter_its_bytes_do():
    assert inspect(picture(1, form="PNG")).format == "PNG"


@pytest.mark.parametrize(
    ("form", "part"),
    [("JPEG", 1 / 3), ("JPEG", 0.9), ("PNG", 0.5), ("WEBP", 0.5), ("GIF", 0.5), ("BMP", 0.5)],
)
def test_an_image_cut_short_is_refused_as_truncated_in_every_format(form, part):
    data = picture(2, (200, 150), form)
    assert rejection(data[: int(len(data) * part)]) == "image_truncated"


def test_a_progressive_jpeg_cut_short_is_refused_too():
    data = picture(2, (200, 150), "JPEG", progressive=True)
    assert rejection(data[: len(data) // 3]) == "image_truncated"


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<html>not found</html>", b"\xff\xd8\xff", b"GIF89a"])
def test_bytes_that_are_no_image_are_undecodable_or_truncated(data):
    assert rejection(data) in {"image_undecodable", "image_truncated"}


@pytest.mark.parametrize("data", [b"<svg xmlns='x'/>", b"II*\0abcd", b"\0\0\0\x1cftypavif....", b"%PDF-1.4"])
def test_other_formats_are_named_as_unsupported(data):
    assert rejection(data) == "image_format_unsupported"


def test_a_bomb_is_refused_by_its_header():
    assert rejection(png_bomb()) == "image_too_large"
    assert rejection(png_bomb(12_000, 9_000)) == "image_too_large"


def test_a_progressive_jpeg_of_endless_scans_is_refused_before_they_are_decoded():
    whole = picture(1, (256, 256), progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    assert inspect(whole, max_pixels=1 << 16).format == "JPEG"
    for read in (inspect, decode):
        with pytest.raises(ImageRejected, match="image_too_large: expected scans"):
            read(whole[:-2] + scan * 20 + whole[-2:], max_pixels=1 << 16)


def test_the_pixel_budget_is_inclusive():
    data = picture(0, (10, 10))
    assert decode(data, max_pixels=100).size == (10, 10)
    assert rejection(data, max_pixels=99) == "image_too_large"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_their_exif_says(orientation):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste("red", (0, 0, 10, 10))  # top left
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", exif=exif, quality=95)
    image = decode(data)
    assert image.size == (40, 20)
    assert (inspect(data).width, inspect(data).height) == (40, 20)
    red, green, _ = image.getpixel((3, 3))
    assert red > 200
    assert green < 60
    assert min(image.getpixel((36, 16))) > 200


def test_damaged_metadata_does_not_cost_the_image():
    data = encoded(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert decode(data).size == (8, 8)


def test_transparency_is_shown_over_white():
    assert decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    assert decode(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 0x8000, 0xFFFF]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(values)))
    assert [image.getpixel((at, 0))[0] for at in range(3)] == [0, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    form = "PNG" if mode in {"L", "1"} else "JPEG"
    assert decode(encoded(Image.new("RGB", (8, 8), "white").convert(mode), form)).mode == "RGB"


def test_only_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((0, 0))[0] > 200


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]),
    at=st.integers(0, 10_000),
    new=st.binary(max_size=30),
    cut=st.integers(0, 300),
)
def test_a_damaged_image_is_decoded_or_rejected_and_nothing_else_is_raised(form, at, new, cut):
    data = picture(3, form=form)
    at %= len(data)
    damaged = data[:at] + new + data[at + cut :]
    try:
        facts = inspect(damaged)
    except ImageRejected:
        return
    assert decode(damaged).size == (facts.width, facts.height)


def jpeg_of(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


WIDE = Image.new("RGB", (640, 320), (200, 30, 40))


@pytest.mark.parametrize(
    ("side", "size"),
    [(0, (640, 320)), (161, (640, 320)), (81, (640, 320)), (80, (320, 160)), (40, (160, 80)), (1, (80, 40))],
)
def test_a_jpeg_is_scaled_while_it_is_decoded_but_stays_twice_as_large_as_asked_for(side, size):
    assert decode(jpeg_of(WIDE), side=side).size == size


def test_only_jpegs_are_scaled_and_the_rest_is_as_without():
    for form in ("PNG", "WEBP", "GIF", "BMP"):
        assert decode(encoded(WIDE, form), side=10).size == (640, 320)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_colour_is_the_same_at_a_smaller_scale(mode):
    data = jpeg_of(WIDE.convert(mode))
    whole, small = (np.asarray(decode(data, side=side), np.int64) for side in (0, 40))
    assert small.shape == (80, 160, 3)
    assert np.abs(whole[::4, ::4] - small).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_smaller_image_is_upright_too(orientation):
    corners = Image.new("RGB", (640, 320), "black")
    corners.paste((250, 250, 250), (0, 0, 160, 80))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg_of(corners, exif=exif, quality=95)
    whole, small = decode(data), decode(data, side=40)
    assert small.size == (whole.width // 4, whole.height // 4)
    difference = np.asarray(whole.resize(small.size, Image.Resampling.BOX), np.int64) - np.asarray(small, np.int64)
    assert np.abs(difference).mean() < 3


def test_what_is_cut_short_is_refused_at_a_smaller_scale_too():
    data = jpeg_of(Image.effect_noise((640, 320), 80).convert("RGB"))
    with pytest.raises(ImageRejected, match="image_truncated"):
        decode(data[: len(data) // 2], side=10)


def test_threads_that_decode_at_once_leave_the_warnings_of_the_process_as_they_are():
    before = list(warnings.filters)
    first, second = (_opened(picture(1), MAX_PIXELS) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert warnings.filters == before


def test_a_hostile_image_is_refused_without_a_warning_of_its_own(tmp_path):
    (tmp_path / "large.png").write_bytes(png_bomb(10_000, 10_000))  # more than Pillow warns of
    code = "import sys; from compalign_dagster.images import inspect; inspect(open(sys.argv[1], 'rb').read())"
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "large.png"], capture_output=True, text=True)
    assert "image_too_large" in ran.stderr
    assert "DecompressionBombWarning" not in ran.stderr


STARVED = [MemoryError(), OSError("out of memory error when reading image file")]


def without_memory(monkeypatch, error):
    """Pillow from here on, as where the machine has no memory to load an image."""

    def load(image):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)


@pytest.mark.parametrize("error", STARVED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("read", [decode, inspect])
def test_a_lack_of_memory_is_no_fault_of_the_image(monkeypatch, read, error):
    without_memory(monkeypatch, error)
    with pytest.raises(CompalignError, match=r"image of \d+ bytes: expected memory to decode it"):
        read(picture(1))


def test_a_lack_of_memory_while_metadata_is_read_turns_no_image_upright_by_chance(monkeypatch):
    def getexif(image):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "getexif", getexif)
    with pytest.raises(CompalignError, match="expected memory to decode it"):
        decode(picture(1))


def test_the_planted_bug_of_taking_it_for_a_broken_image_turns_this_red(monkeypatch):
    without_memory(monkeypatch, MemoryError())
    monkeypatch.setattr(images, "no_memory", lambda data: images._undecodable(data, MemoryError()))
    with pytest.raises(ImageRejected, match="image_undecodable"):
        decode(picture(1))
