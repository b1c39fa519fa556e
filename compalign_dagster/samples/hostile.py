"""What a crawl has that no pipeline can read: one sample of each kind, for the quarantine to show.

What belongs here: damage inside a sample. What does not: damaged tars, which tests make themselves.
"""

from compalign_dagster.samples.members import Sample

HOSTILE = ("truncated_image", "not_an_image", "missing_caption", "not_utf8", "long_caption")
"""The kinds. Each costs the sample its pair."""

_PAGE = b"<!doctype html><html><head><title>404 Not Found</title></head><body>Gone.</body></html>\n"


def hostile_sample(kind: str, image: bytes, caption: str) -> Sample:
    """A good sample, spoiled in this way."""
    if kind == "truncated_image":
        return Sample(image[: len(image) // 2], caption)
    if kind == "not_an_image":
        return Sample(_PAGE, caption)
    if kind == "missing_caption":
        return Sample(image, None)
    if kind == "not_utf8":
        return Sample(image, f"{caption}, caf".encode() + b"\xe9 \xff")
    if kind == "long_caption":
        return Sample(image, f"{caption}, " * (12_000 // len(caption)))
    raise ValueError(kind)
