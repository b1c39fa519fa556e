"""Near misses: a caption with one word changed to another that fits the same place.

Captions of other images differ in almost everything, so a batch teaches a small network little about
single attributes. Words that other captions use between the same neighbours make plausible mistakes
("a small red circle" becomes "a small green circle") without any grammar or word list. The idea is
that of hard negative captions (Yuksekgonul et al. 2023, arXiv 2210.01936). A synonym makes a false
negative now and then; the loss averages over them.
"""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

_WORD = re.compile(r"\w+|[^\w\s]")
_EDGE = ""
_LEAST_SEEN = 3  # times that a word must have been seen in a place to be a substitute
_MOST_CAPTIONS = 20_000
_MOST_OF_A_CAPTION = 1000  # characters
_LEAST_WORDS = 3


class Substitutes:
    """Which words captions put between the same two neighbours.

    `shuffled` is the share of near misses that are the caption's own words in another order: without any, a
    small network reads captions as bags of words.
    """

    def __init__(self, captions: Iterable[str], *, shuffled: float = 0.0) -> None:
        self._shuffled = shuffled
        seen: dict[tuple[str, str], Counter[str]] = {}
        for _, caption in zip(range(_MOST_CAPTIONS), captions, strict=False):
            words = [_EDGE, *(word.lower() for word in _WORD.findall(caption[:_MOST_OF_A_CAPTION])), _EDGE]
            for left, word, right in zip(words, words[1:], words[2:], strict=False):
                seen.setdefault((left, right), Counter())[word] += 1
        self._fitting: dict[tuple[str, str], list[str]] = {}
        for place, found in seen.items():
            fitting = sorted(word for word, times in found.items() if times >= _LEAST_SEEN)
            if len(fitting) > 1:
                self._fitting[place] = fitting

    def near_miss(self, caption: str, rng: np.random.Generator) -> str | None:
        """The caption with one word changed, all else as it was; None where no word has a substitute.

        Spacing, punctuation and a capital letter stay, so that nothing but the word gives it away. Or, for a
        share of them, all words in another order.
        """
        if self._shuffled and rng.random() < self._shuffled:
            mixed = _mixed(caption, rng)
            if mixed is not None:
                return mixed
        found = list(_WORD.finditer(caption[:_MOST_OF_A_CAPTION]))
        words = [_EDGE, *(match[0].lower() for match in found), _EDGE]
        places = [(at, self._others(words, at)) for at in range(1, len(words) - 1)]
        places = [(at, others) for at, others in places if others]
        if not places:
            return None
        at, others = places[rng.integers(len(places))]
        word, match = others[rng.integers(len(others))], found[at - 1]
        word = word.capitalize() if match[0][0].isupper() else word
        changed = caption[: match.start()] + word + caption[match.end() :]
        return changed if changed != caption else None

    def _others(self, words: list[str], at: int) -> list[str]:
        fitting = self._fitting.get((words[at - 1], words[at + 1]), [])
        return [word for word in fitting if word != words[at]]


def _mixed(caption: str, rng: np.random.Generator) -> str | None:
    """The words in another order; None for fewer than three different ones, which read like a caption in any order."""
    words = caption.split()
    if len(set(words)) < _LEAST_WORDS:
        return None
    while True:
        mixed = [words[at] for at in rng.permutation(len(words))]
        if mixed != words:
            return " ".join(mixed)
