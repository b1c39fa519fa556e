import io
import random

import pytest
from PIL import Image

from compalign_dagster.samples.scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIDE,
    Group,
    Scene,
    random_scene,
    render,
)


def picture(scene: Scene, seed: int = 1) -> Image.Image:
    return Image.open(io.BytesIO(render(scene, random.Random(seed)))).convert("RGB")


def near(pixel: tuple[int, ...], colour: tuple[int, int, int], most: int = 45) -> bool:
    return all(abs(one - other) <= most for one, other in zip(pixel, colour, strict=True))


def test_the_same_generator_gives_the_same_bytes_and_another_one_others():
    scene = random_scene(random.Random(3))
    assert render(scene, random.Random(5)) == render(scene, random.Random(5))
    assert render(scene, random.Random(5)) != render(scene, random.Random(6))


def test_an_image_is_a_jpeg_of_the_announced_size():
    image = Image.open(io.BytesIO(render(random_scene(random.Random(1)), random.Random(1))))
    assert (image.format, image.size) == ("JPEG", (SIDE, SIDE))


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_single_object_has_its_colour_in_the_middle_and_its_background_in_the_corner(colour, background):
    image = picture(Scene((Group(1, "large", colour, "circle"),), None, background))
    assert near(image.getpixel((SIDE // 2, SIDE // 2)), COLOURS[colour])
    assert near(image.getpixel((2, 2)), BACKGROUNDS[background], 15)


@pytest.mark.parametrize(
    ("relation", "place"), [("left", (26, 48)), ("right", (70, 48)), ("above", (48, 26)), ("below", (48, 70))]
)
def test_the_first_group_lies_where_the_relation_says(relation, place):
    groups = (Group(1, "large", "red", "circle"), Group(1, "large", "blue", "circle"))
    image = picture(Scene(groups, relation, "white"))
    assert near(image.getpixel(place), COLOURS["red"])
    assert near(image.getpixel((SIDE - place[0], SIDE - place[1])), COLOURS["blue"])


def test_every_shape_looks_different():
    drawn = {shape: picture(Scene((Group(1, "large", "black", shape),), None, "white")).tobytes() for shape in SHAPES}
    assert len(set(drawn.values())) == len(SHAPES)


def test_scenes_use_every_word_and_never_two_groups_that_cannot_be_told_apart():
    rng = random.Random(11)
    scenes = [random_scene(rng) for _ in range(2000)]
    groups = [group for scene in scenes for group in scene.groups]
    assert {group.colour for group in groups} == set(COLOURS)
    assert {group.shape for group in groups} == set(SHAPES)
    assert {group.count for group in groups} == {1, 2, 3}
    assert {scene.relation for scene in scenes} == {None, *RELATIONS}
    for scene in scenes:
        assert len({(group.colour, group.shape) for group in scene.groups}) == len(scene.groups)
        assert (scene.relation is None) == (len(scene.groups) == 1)
