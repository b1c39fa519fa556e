"""Contract lines for these tests."""

import json
from typing import Any


def judgement(labeler: str = "l-1", **changes: Any) -> dict[str, Any]:
    """Captions a, b, c ranked a, then b and c together."""
    return {"labeler": labeler, "ranking": [["a"], ["b", "c"]], **changes}


def line(key: str | None = "000000000", **changes: Any) -> dict[str, Any]:
    """One judged image with three captions."""
    captions = [
        {"id": "a", "text": "a red circle", "source": "human"},
        {"id": "b", "text": "buy now", "source": "crawled"},
        {"id": "c", "text": "a circle", "source": "model", "model": "captioner"},
    ]
    return {
        "image": {"shard": "judged/00000.tar", "key": key},
        "captions": captions,
        "judgements": [judgement()],
        **changes,
    }


def jsonl(*items: Any) -> bytes:
    """Lines of a file; bytes stay as they are."""
    return b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items)
