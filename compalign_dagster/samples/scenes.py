"""Scenes: a few coloured shapes on a plain background, drawn large enough to learn from at 64 px.

What belongs here: what a scene is, drawing one at random and rendering it. What does not: words for
it (`captions.py`). Everything is a function of the random generator that is passed in.
"""

import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 96  # px, square
QUALITY = 90  # JPEG

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = {
    "red": (214, 32, 32),
    "green": (26, 148, 52),
    "blue": (28, 72, 216),
    "yellow": (246, 210, 16),
    "orange": (246, 128, 12),
    "purple": (138, 40, 168),
    "black": (20, 20, 20),
    "brown": (122, 72, 28),
}
SIZES = {"large": 38, "small": 22}  # px across
BACKGROUNDS = {
    "white": (250, 250, 250),
    "grey": (188, 188, 188),
    "pink": (250, 208, 214),
    "beige": (240, 224, 176),
}
RELATIONS = {"left": "right", "right": "left", "above": "below", "below": "above"}  # and its opposite

_TINT = 5  # most that a background channel moves
_SHADE = 10  # most that an object's channel moves
_JITTER = 3  # px that an object moves
_OVERSAMPLING = 2


@dataclass(frozen=True)
class Group:
    """One to three equal objects side by side."""

    count: int
    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One group, or two of which the first lies `relation` of the second."""

    groups: tuple[Group, ...]
    relation: str | None
    background: str


def random_scene(rng: random.Random) -> Scene:
    """A scene: 35 % one group of one to three, otherwise two different groups of one or two."""
    background = rng.choice(list(BACKGROUNDS))
    first = random_group(rng)
    if rng.random() < 0.35:
        return Scene((first,), None, background)
    first, second = (random_group(rng, most=2) for _ in range(2))
    while (second.shape, second.colour) == (first.shape, first.colour):
        second = random_group(rng, most=2)
    return Scene((first, second), rng.choice(list(RELATIONS)), background)


def random_group(rng: random.Random, *, most: int = 3) -> Group:
    """A group of at most `most` objects."""
    count = rng.choices((1, 2, 3)[:most], (60, 25, 15)[:most])[0]
    return Group(count, rng.choice(list(SIZES)), rng.choice(list(COLOURS)), rng.choice(SHAPES))


def render(scene: Scene, rng: random.Random) -> bytes:
    """The scene as JPEG bytes, `SIDE` x `SIDE` px; places and tints differ a little every time."""
    tint = _near(BACKGROUNDS[scene.background], _TINT, rng)
    image = Image.new("RGB", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING), tint)
    pen = ImageDraw.Draw(image)
    for group, centres in zip(scene.groups, _places(scene), strict=True):
        for x, y in centres:
            x, y = x + rng.uniform(-_JITTER, _JITTER), y + rng.uniform(-_JITTER, _JITTER)
            size = SIZES[group.size] * rng.uniform(0.95, 1.05)
            _draw(pen, group.shape, x, y, size, _near(COLOURS[group.colour], _SHADE, rng), tint)
    out = io.BytesIO()
    image.reduce(_OVERSAMPLING).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _near(colour: tuple[int, int, int], most: int, rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, channel + rng.randint(-most, most))) for channel in colour)
    return red, green, blue


def _places(scene: Scene) -> list[list[tuple[float, float]]]:
    """Centres of every group's objects, px of the final picture."""
    low, middle, high = SIDE * 0.27, SIDE * 0.5, SIDE * 0.73
    if scene.relation is None:
        patterns = {
            1: [(middle, middle)],
            2: [(low, middle), (high, middle)],
            3: [(middle, low), (low, high), (high, high)],
        }
        return [patterns[scene.groups[0].count]]
    beside = scene.relation in ("left", "right")
    first, second = (low, high) if scene.relation in ("left", "above") else (high, low)
    places = []
    for group, along in zip(scene.groups, (first, second), strict=True):
        across = [middle] if group.count == 1 else [low, high]
        places.append([(along, place) if beside else (place, along) for place in across])
    return places


def _draw(
    pen: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    size: float,
    colour: tuple[int, int, int],
    background: tuple[int, int, int],
) -> None:
    x, y, half = x * _OVERSAMPLING, y * _OVERSAMPLING, size * _OVERSAMPLING / 2
    if shape == "circle":
        pen.ellipse(_box(x, y, half), fill=colour)
    elif shape == "ring":
        pen.ellipse(_box(x, y, half), fill=colour)
        pen.ellipse(_box(x, y, half * 0.55), fill=background)
    elif shape == "square":
        pen.rectangle(_box(x, y, half * 0.9), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half * 0.85), (x + half, y + half * 0.85)], fill=colour)
    elif shape == "star":
        angles = [-math.pi / 2 + turn * math.pi / 5 for turn in range(10)]
        radii = [half * 1.1, half * 0.45] * 5
        corners = [
            (x + radius * math.cos(angle), y + radius * math.sin(angle))
            for angle, radius in zip(angles, radii, strict=True)
        ]
        pen.polygon(corners, fill=colour)
    else:
        arm = half * 0.36
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=colour)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=colour)


def _box(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    return x - half, y - half, x + half, y + half
