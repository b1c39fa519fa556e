"""The annotation contract: what one line of judgements may say.

What belongs here: the shape of a line and the rules inside it. What does not: files (`read.py`), and
whether the image exists (`assemble.py`). Unknown fields are refused, so that a misspelled one is not
lost silently.
"""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

MAX_CAPTION_CHARACTERS = 10_000
MAX_CAPTIONS = 200  # of one image in one line; comparisons grow with its square
MAX_JUDGEMENTS = 1_000

Name = Annotated[str, Field(min_length=1, max_length=500)]
Rating = Annotated[float, Field(ge=1, le=5, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


class ImageReference(_Strict):
    """Which image: by the SHA-256 of its bytes, by shard and key, or by an unambiguous key."""

    shard: Name | None = None
    key: Name | None = None
    sha256: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")] | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.sha256 is None and self.key is None:
            raise PydanticCustomError("image_not_named", "needs sha256 or key")
        return self


class JudgedCaption(_Strict):
    """A caption of the image. `model` names the captioner of a caption whose source is "model"."""

    id: Name
    text: Annotated[str, Field(max_length=MAX_CAPTION_CHARACTERS)]
    source: Literal["human", "crawled", "model"]
    model: Name | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.text.strip():
            raise PydanticCustomError("caption_blank", "caption {id} is blank", {"id": repr(self.id)})
        if self.model is not None and self.source != "model":
            raise PydanticCustomError(
                "captioner_unexpected",
                "caption {id} names a model, but its source is {source}",
                {"id": repr(self.id), "source": self.source},
            )
        return self


class Ratings(_Strict):
    """A labeler's ratings of one caption, 1 (worst) to 5 (best); what was not asked is missing."""

    accuracy: Rating | None = None
    completeness: Rating | None = None
    vividness: Rating | None = None
    context: Rating | None = None


class Judgement(_Strict):
    """What one labeler said: caption ids from best to worst, ties together, and ratings by caption id.

    Captions may be left out of either; a judgement without both says nothing and is refused.
    """

    labeler: Name
    ranking: Annotated[list[Annotated[list[Name], Field(min_length=1)]], Field(max_length=MAX_CAPTIONS)] = []
    ratings: dict[Name, Ratings] = {}
    seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    guideline: Name | None = None

    @model_validator(mode="after")
    def _ranks_once(self) -> Self:
        ranked = Counter(caption for place in self.ranking for caption in place)
        for caption, times in ranked.items():
            if times > 1:
                raise PydanticCustomError("caption_ranked_twice", "caption {id} is ranked twice", {"id": repr(caption)})
        if not ranked and not self.ratings:
            raise PydanticCustomError("judgement_empty", "has neither a ranking nor ratings")
        return self


class JudgedImage(_Strict):
    """One line: an image, captions of it, and what labelers said of them."""

    image: ImageReference
    captions: Annotated[list[JudgedCaption], Field(min_length=1, max_length=MAX_CAPTIONS)]
    judgements: Annotated[list[Judgement], Field(min_length=1, max_length=MAX_JUDGEMENTS)]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        known: set[str] = set()
        for caption in self.captions:
            if caption.id in known:
                raise PydanticCustomError("caption_twice", "caption {id} is given twice", {"id": repr(caption.id)})
            known.add(caption.id)
        labelers: set[str] = set()
        for judgement in self.judgements:
            if judgement.labeler in labelers:
                raise PydanticCustomError(
                    "labeler_twice", "labeler {name} judges twice", {"name": repr(judgement.labeler)}
                )
            labelers.add(judgement.labeler)
            ranked = [caption for place in judgement.ranking for caption in place]
            for caption_id in [*ranked, *judgement.ratings]:
                if caption_id not in known:
                    raise PydanticCustomError(
                        "caption_unknown",
                        "labeler {name} judges caption {id}, which the line does not give",
                        {"name": repr(judgement.labeler), "id": repr(caption_id)},
                    )
        return self


_REASONS = {
    "json_invalid": "not_json",
    "missing": "field_missing",
    "extra_forbidden": "field_unknown",
    "model_type": "not_an_object",
    "model_attributes_type": "not_an_object",
}
_OUR_OWN = {
    "image_not_named",
    "caption_blank",
    "captioner_unexpected",
    "caption_ranked_twice",
    "judgement_empty",
    "caption_twice",
    "labeler_twice",
    "caption_unknown",
}


def explain(error: ValidationError) -> tuple[str, str]:
    """The first thing wrong with a line, as a reason to count by and a detail to find it by."""
    first = error.errors(include_url=False, include_context=False)[0]
    reason = first["type"] if first["type"] in _OUR_OWN else _REASONS.get(first["type"], "value_invalid")
    place = ".".join(str(part) for part in first["loc"])
    message = f"{place}: {first['msg']}" if place else first["msg"]
    if reason == "value_invalid":
        message += f", found {first['input']!r}"
    return reason, _printable(message)


def _printable(text: str) -> str:
    """At most 300 characters that any file can hold; a lone surrogate is no text."""
    return text[:300].encode("utf-8", "backslashreplace").decode()
