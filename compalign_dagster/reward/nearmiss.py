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


class Substitutes:
    """Which words captions put between the same two neighbours."""

    def __init__(self, captions: Iterable[str]) -> None:
        seen: dict[tuple[str, str], Counter[str]] = {}
        for _, caption in zip(range(_MOST_CAPTIONS), captions, strict=False):
            words = [_EDGE, *_WORD.findall(caption.lower()[:1000]), _EDGE]
            for left, word, right in zip(words, words[1:], words[2:], strict=False):
                seen.setdefault((left, right), Counter())[word] += 1
        self._fitting: dict[tuple[str, str], list[str]] = {}
        for place, found in seen.items():
            fitting = sorted(word for word, times in found.items() if times >= _LEAST_SEEN)
            if len(fitting) > 1:
                self._fitting[place] = fitting

    def near_miss(self, caption: str, rng: np.random.Generator) -> str | None:
        """The caption, in lower case, with one word changed; None where no word has a substitute."""
        words = [_EDGE, *_WORD.findall(caption.lower()[:1000]), _EDGE]
        places = [
            at
            for at in range(1, len(words) - 1)
            if any(word != words[at] for word in self._fitting.get((words[at - 1], words[at + 1]), ()))
        ]
        if not places:
            return None
        at = places[rng.integers(len(places))]
        others = [word for word in self._fitting[words[at - 1], words[at + 1]] if word != words[at]]
        words[at] = others[rng.integers(len(others))]
        return " ".join(words[1:-1])
