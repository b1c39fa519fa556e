"""The page of `coco_hf_annotations`: how much was judged, by whom, and what a judgement looks like."""

from collections.abc import Mapping, Sequence
from typing import Any

from compalign_dagster.pages.cards import largest_first, readable
from compalign_dagster.pages.images import thumbnail_uri
from compalign_dagster.pages.render import render

_EXAMPLES_SHOWN = 12
_CAPTIONS_SHOWN = 10
_BY = "_by_"


def annotations_page(
    facts: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
) -> bytes:
    """The page of one set of annotations.

    `facts`: whole numbers become tiles, mappings of names to whole numbers become tables, `problems`
    (sentences) is the outcome of the exact check, `agreement` has estimates `{value, low, high, n}` by name
    and `mean_rank_of_source` a number by caption source. `examples`: `image` (bytes), `labeler`, `captions`
    (best first: `rank`, `caption`, `source`).
    """
    return render(
        "annotations.html",
        numbers=[(name, value) for name, value in facts.items() if type(value) is int],
        tables=[
            (name, name.rpartition(_BY)[2] if _BY in name else "name", largest_first(value))
            for name, value in facts.items()
            if isinstance(value, Mapping) and value and all(type(item) is int for item in value.values())
        ],
        images=facts.get("images", 0),
        comparisons=facts.get("comparisons", 0),
        problems=[readable(text, 300).text for text in facts.get("problems", [])],
        agreement=dict(facts.get("agreement") or {}),
        means=list((facts.get("mean_rank_of_source") or {}).items()),
        examples=[_shown(example) for example in examples[:_EXAMPLES_SHOWN]],
    )


def _shown(example: Mapping[str, Any]) -> dict[str, Any]:
    captions = list(example["captions"])
    ranks = [entry.get("rank") for entry in captions]
    return {
        "picture": thumbnail_uri(example["image"]),
        "labeler": readable(example.get("labeler") or "somebody", 60).text,
        "left_out": len(captions) - len(captions[:_CAPTIONS_SHOWN]),
        "captions": [
            {
                "rank": entry.get("rank"),
                "tied": ranks.count(entry.get("rank")) > 1,
                "caption": readable(entry["caption"]),
                "source": readable(entry.get("source") or "", 40).text,
            }
            for entry in captions[:_CAPTIONS_SHOWN]
        ],
    }
