"""Words for scenes in four languages: enough to name a scene grammatically.

What belongs here: vocabulary and word order. What does not: deciding what a caption says
(`captions.py`).
"""

import random
from collections.abc import Mapping
from typing import Any

from compalign_dagster.samples.scenes import COLOURS, RELATIONS, SHAPES, Group, Scene

_NUMBERS = {1: "a", 2: "two", 3: "three"}
_PLURALS = {"cross": "crosses"}
_PLACED = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_MOODS = ("bright", "neat", "bold", "clear")
_OPENINGS = ("", "", "a picture of ", "a drawing of ", "the image shows ")


def english_group(group: Group, *, size: bool = True, mood: str = "") -> str:
    """For example "two small red circles"."""
    noun = group.shape if group.count == 1 else _PLURALS.get(group.shape, f"{group.shape}s")
    words = [mood, group.size if size else "", group.colour, noun]
    phrase = " ".join(word for word in words if word)
    article = "an" if group.count == 1 and phrase[0] in "aeiou" else _NUMBERS[group.count]
    return f"{article} {phrase}"


def english(scene: Scene, rng: random.Random, *, vivid: bool = False) -> str:
    """Everything there is to say about a scene, with changing openings."""
    first = english_group(scene.groups[0], mood=rng.choice(_MOODS) if vivid else "")
    where = f" on a {scene.background} background"
    if scene.relation is None:
        return f"{rng.choice(_OPENINGS)}{first}{where}"
    second = english_group(scene.groups[1], mood=rng.choice(_MOODS) if vivid else "")
    return f"{rng.choice(_OPENINGS)}{first} {_PLACED[scene.relation]} {second}{where}"


def english_relation(scene: Scene) -> str:
    """The scene's groups without sizes and background; for one group the group alone."""
    first = english_group(scene.groups[0], size=False)
    if scene.relation is None:
        return first
    return f"{first} {_PLACED[scene.relation]} {english_group(scene.groups[1], size=False)}"


_FOREIGN: Mapping[str, Mapping[str, Any]] = {
    "de": {
        "numbers": ("ein", "zwei", "drei"),
        "shapes": ("Kreis", "Quadrat", "Dreieck", "Stern", "Ring", "Kreuz"),
        "plurals": ("Kreise", "Quadrate", "Dreiecke", "Sterne", "Ringe", "Kreuze"),
        "colours": ("Rot", "Grün", "Blau", "Gelb", "Orange", "Lila", "Schwarz", "Braun"),
        "places": {"left": "links", "right": "rechts", "above": "oben", "below": "unten"},
        "pattern": "{number} {noun} in {colour}",
    },
    "es": {
        "numbers": ("un", "dos", "tres"),
        "shapes": ("círculo", "cuadrado", "triángulo", "lucero", "anillo", "signo más"),
        "plurals": ("círculos", "cuadrados", "triángulos", "luceros", "anillos", "signos más"),
        "colours": ("rojo", "verde", "azul", "amarillo", "naranja", "morado", "negro", "marrón"),
        "places": {"left": "a la izquierda", "right": "a la derecha", "above": "arriba", "below": "abajo"},
        "pattern": "{number} {noun} de color {colour}",
    },
    "fr": {
        "numbers": ("un", "deux", "trois"),
        "shapes": ("cercle", "carré", "triangle", "astre", "anneau", "signe plus"),
        "plurals": ("cercles", "carrés", "triangles", "astres", "anneaux", "signes plus"),
        "colours": ("rouge", "vert", "bleu", "jaune", "orange", "violet", "noir", "marron"),
        "places": {"left": "à gauche", "right": "à droite", "above": "en haut", "below": "en bas"},
        "pattern": "{number} {noun} de couleur {colour}",
    },
}
LANGUAGES = tuple(_FOREIGN)


def foreign(scene: Scene, language: str) -> str:
    """The scene in German (`de`), Spanish (`es`) or French (`fr`), without sizes and background."""
    words = _FOREIGN[language]
    phrases = [_foreign_group(group, words) for group in scene.groups]
    if scene.relation is None:
        return phrases[0]
    places = words["places"]
    return f"{places[scene.relation]} {phrases[0]}, {places[RELATIONS[scene.relation]]} {phrases[1]}"


def _foreign_group(group: Group, words: Mapping[str, Any]) -> str:
    nouns = words["shapes"] if group.count == 1 else words["plurals"]
    return words["pattern"].format(
        number=words["numbers"][group.count - 1],
        noun=nouns[SHAPES.index(group.shape)],
        colour=words["colours"][list(COLOURS).index(group.colour)],
    )
