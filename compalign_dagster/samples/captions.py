"""Captions of many qualities for a scene, each with what is true about it.

What belongs here: the kinds of captions, how often a crawl has them, and their true quality under
the four criteria. What does not: anybody's opinion of them (`labelers.py`).
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compalign_dagster.samples.languages import LANGUAGES, english, english_group, english_relation, foreign
from compalign_dagster.samples.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Group,
    Scene,
    random_scene,
)


@dataclass(frozen=True)
class Quality:
    """What a perfect labeler would say, 1 (worst) to 5 (best) for each criterion."""

    accuracy: float
    completeness: float
    vividness: float
    context: float

    @property
    def overall(self) -> float:
        """The criteria as one number from 1 to 5; accuracy weighs most."""
        return sum(weight * getattr(self, name) for name, weight in WEIGHTS.items())


WEIGHTS: Mapping[str, float] = {"accuracy": 0.5, "completeness": 0.2, "vividness": 0.15, "context": 0.15}
CRITERIA = tuple(WEIGHTS)


WORST = Quality(1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Caption:
    """A caption, how it came about and how good it is."""

    text: str
    kind: str
    quality: Quality


# How often a crawl has which kind, per corpus. About a third is worth keeping.
MIXTURES: Mapping[str, Mapping[str, int]] = {
    "sample": {
        "complete": 25,
        "thin": 12,
        "wrong_attribute": 14,
        "wrong_relation": 8,
        "wrong_count": 7,
        "other_image": 16,
        "boilerplate": 9,
        "file_name": 5,
        "other_language": 4,
    },
    "sample-shop": {
        "complete": 14,
        "thin": 10,
        "wrong_attribute": 10,
        "wrong_relation": 4,
        "wrong_count": 4,
        "other_image": 20,
        "boilerplate": 22,
        "file_name": 11,
        "other_language": 5,
    },
}
GOOD_KINDS = ("complete", "thin")


def draw_kind(mixture: Mapping[str, int], rng: random.Random) -> str:
    """A kind, as often as the mixture says."""
    return rng.choices(list(mixture), list(mixture.values()))[0]


def write_caption(scene: Scene, kind: str, rng: random.Random) -> Caption:
    """A caption of this kind for this scene."""
    if kind in _UNRELATED:
        text, quality = _UNRELATED[kind]
        return Caption(text(scene, rng), kind, quality)
    if kind == "thin":
        return _thin(scene, rng)
    if kind == "wrong_relation" and scene.relation is None:
        kind = "wrong_attribute"  # nothing there to relate
    told = _told(scene, kind, rng)
    vivid = rng.random() < 0.3
    wrong = 1 - agreement(told, scene)
    quality = Quality(
        accuracy=max(1.0, 5 - 16 * wrong),
        completeness=max(1.0, 5 - 8 * wrong),
        vividness=5.0 if vivid else 3.5,
        context=5.0 if wrong == 0 else 3.5 if wrong < 0.4 else 2.0,
    )
    return Caption(english(told, rng, vivid=vivid), kind, quality)


def agreement(told: Scene, seen: Scene) -> float:
    """The weighted share, 0 to 1, of what there is to say of `seen` that `told` gets right.

    "A left of B" and "B right of A" say the same.
    """
    tellings = [told]
    if told.relation is not None:
        tellings.append(Scene(told.groups[::-1], RELATIONS[told.relation], told.background))
    return max(_agreement(telling, seen) for telling in tellings)


def _agreement(told: Scene, seen: Scene) -> float:
    whole = _BACKGROUND + max(len(told.groups), len(seen.groups)) * sum(_FACTS.values())
    right = _BACKGROUND * (told.background == seen.background)
    right += sum(map(_group_agreement, told.groups, seen.groups))
    if told.relation is not None or seen.relation is not None:
        whole += _RELATION
        right += _RELATION * (told.relation == seen.relation)
    return right / whole


_FACTS = {"shape": 1.0, "colour": 1.0, "count": 0.8, "size": 0.5}  # how much a mistake in each hurts
_RELATION = 1.0
_BACKGROUND = 0.4


def _group_agreement(told: Group, seen: Group) -> float:
    return sum(weight * (getattr(told, name) == getattr(seen, name)) for name, weight in _FACTS.items())


def _told(scene: Scene, kind: str, rng: random.Random) -> Scene:
    """The scene that the caption describes: this one, this one with a mistake, or another."""
    if kind in GOOD_KINDS:
        return scene
    if kind == "other_image":
        other = random_scene(rng)
        while agreement(other, scene) > 0.45:
            other = random_scene(rng)
        return other
    if kind == "wrong_relation":
        wrong = rng.choice([name for name in RELATIONS if name != scene.relation])
        return replace(scene, relation=wrong)
    place = rng.randrange(len(scene.groups))
    group = scene.groups[place]
    groups = list(scene.groups)
    if kind == "wrong_count":
        groups[place] = replace(group, count=_another((1, 2, 3), group.count, rng))
    else:
        groups[place] = _recoloured(group, rng)
    return replace(scene, groups=tuple(groups))


def _recoloured(group: Group, rng: random.Random) -> Group:
    colour = _another(tuple(COLOURS), group.colour, rng)
    shape = _another(SHAPES, group.shape, rng)
    draw = rng.random()
    if draw < 0.4:
        return replace(group, colour=colour)
    if draw < 0.75:
        return replace(group, shape=shape)
    if draw < 0.85:
        return replace(group, size=_another(tuple(SIZES), group.size, rng))
    return replace(group, colour=colour, shape=shape)


def _another(values: tuple[Any, ...], present: Any, rng: random.Random) -> Any:
    return rng.choice([value for value in values if value != present])


def _thin(scene: Scene, rng: random.Random) -> Caption:
    """Right, but leaving out much: sizes and background, or all but one group, or all but shapes."""
    first = scene.groups[0]
    form = rng.randrange(3)
    if form == 0:
        text, share = english_relation(scene), 0.65
    elif form == 1 and scene.relation is not None:
        text, share = english_group(rng.choice(scene.groups), size=False), 0.3
    else:
        text, share = " and ".join(english_group(group, size=False) for group in scene.groups), 0.5
    if len(scene.groups) == 1 and first.count == 1 and form == 2:
        text, share = f"{first.colour} {first.shape}", 0.4
    return Caption(text, "thin", Quality(5.0, 1 + 4 * share, 2.0, 4.0))


_SHOP_TALK = (
    "buy now and save, free shipping today",
    "free stock photo, click here to download",
    "best price online, new arrivals every week",
    "click here to see more offers",
    "image not available in your country",
    "sign up for our newsletter",
    "photo 3 of 12, next, previous",
)


def _boilerplate(scene: Scene, rng: random.Random) -> str:
    if rng.random() < 0.35:
        return f"Image may contain: {rng.choice(scene.groups).shape}, {rng.choice(SHAPES)}. Buy now"
    return rng.choice(_SHOP_TALK)


def _file_name(scene: Scene, rng: random.Random) -> str:
    stem = rng.choice(("IMG_{:04d}", "DSC{:05d}", "image-{}", "screenshot {}", "untitled-{}"))
    return stem.format(rng.randrange(1, 10_000)) + rng.choice((".jpg", ".jpg", ".png", ".jpeg"))


def _other_language(scene: Scene, rng: random.Random) -> str:
    return foreign(scene, rng.choice(LANGUAGES))


_UNRELATED: Mapping[str, tuple[Callable[[Scene, random.Random], str], Quality]] = {
    "boilerplate": (_boilerplate, Quality(1.5, 1.0, 1.5, 1.0)),
    "file_name": (_file_name, WORST),
    "other_language": (_other_language, Quality(4.0, 3.0, 2.5, 1.0)),
}
