"""The sample crawl: rendered scenes and captions of many qualities, laid out like a real project.

What belongs here: the folder as a whole, written once and whole. What does not: what goes into each
part (`parts.py`). A sample to try the pipeline on, not evidence about the web.

    OUT/landing/sample/0000N.tar         the crawl; OUT/landing/sample-shop/ is its noisier corpus
    OUT/labels/judgements.jsonl          judgements in the annotation contract
    OUT/labels/shards/judged/0000N.tar   the judged images, five captions each
    OUT/evaluation/clean/0000N.tar       clean held-out pairs
    OUT/truth/captions.parquet           what every caption really is; for tests, no asset reads it
    OUT/sample.json                      the arguments and counts, written last
"""

import json
import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from compalign_dagster.errors import InputError
from compalign_dagster.parquet import from_rows, write
from compalign_dagster.samples.captions import GOOD_KINDS
from compalign_dagster.samples.parts import TRUTH, Parts

logger = logging.getLogger(__name__)

CODE_VERSION = 1  # of the bytes written

MARKER = "sample.json"
FOLDERS = ("evaluation", "labels", "truth", "landing")  # landing last: sensors watch it


def write_sample_crawl(
    out: Path,
    *,
    seed: int = 7,
    pairs: int = 4000,
    judged_images: int = 1000,
    evaluation_pairs: int = 500,
    shard_pairs: int = 500,
) -> dict[str, Any]:
    """Write the sample into the folder `out` and return its counts.

    `pairs` counts the crawl's readable pairs; empty captions and hostile samples come on top. Equal
    arguments give equal bytes. Everything is made aside and then renamed into place. Where `out`
    already holds this very sample, nothing is written and `written` is False in what is returned;
    other files beside the sample's own are left alone.

    Raises `InputError` for sizes that make no sense, and where anything else lies in the sample's place.
    """
    arguments = {
        "code_version": CODE_VERSION,
        "seed": seed,
        "pairs": pairs,
        "judged_images": judged_images,
        "evaluation_pairs": evaluation_pairs,
        "shard_pairs": shard_pairs,
    }
    _check_sizes(arguments)
    found = _already_there(out, arguments)
    if found is not None:
        logger.info("%s already holds this sample: nothing to do", out)
        return {"out": str(out), **found, "written": False}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample-", suffix=".part", dir=out) as folder:
        made = Path(folder)
        summary = _write(made, seed, pairs, judged_images, evaluation_pairs, shard_pairs)
        (made / MARKER).write_text(json.dumps({"arguments": arguments, "summary": summary}, indent=2) + "\n")
        for name in (*FOLDERS, MARKER):
            (made / name).replace(out / name)  # an empty folder may lie there
    return {"out": str(out), **summary, "written": True}


def _write(
    out: Path, seed: int, pairs: int, judged_images: int, evaluation_pairs: int, shard_pairs: int
) -> dict[str, Any]:
    parts = Parts(out, seed)
    shards = parts.landing(pairs, shard_pairs)
    judgements, comparisons = parts.labels(judged_images)
    evaluation_shards = parts.evaluation(evaluation_pairs, shard_pairs)
    write(from_rows(parts.truth, TRUTH), out / "truth/captions.parquet")
    kinds = Counter(row["kind"] for row in parts.truth if row["part"] == "landing")
    return {
        "seed": seed,
        "shards": shards,
        "pairs": pairs,
        "good_pairs": sum(kinds[kind] for kind in GOOD_KINDS),
        "captions_by_kind": dict(sorted(kinds.items())),
        "judged_images": judged_images,
        "judgements": judgements,
        "comparisons": comparisons,
        "evaluation_pairs": evaluation_pairs,
        "evaluation_shards": evaluation_shards,
    }


def _check_sizes(arguments: dict[str, int]) -> None:
    for name, value in arguments.items():
        if name != "seed" and value < 1:
            raise InputError(f"{name} of the sample", expected="at least 1", found=str(value), remedy="Ask for more.")


def _already_there(out: Path, arguments: dict[str, int]) -> dict[str, Any] | None:
    """The counts of the same sample at `out`; None where its places are free."""
    written: Any = None
    if out.exists() and not out.is_dir():
        raise _refusal(out, "a file")
    if (out / MARKER).exists():
        try:
            written = json.loads((out / MARKER).read_bytes())
        except ValueError:
            written = {}
        if isinstance(written, dict) and written.get("arguments") == arguments:
            return written["summary"]
    taken = [name for name in (MARKER, *FOLDERS) if _occupied(out / name)]
    if taken:
        raise _refusal(out, f"another or an unfinished one: {', '.join(taken)}")
    return None


def _refusal(out: Path, found: str) -> InputError:
    return InputError(
        f"folder {out}",
        expected="no sample in it yet, or this very one",
        found=found,
        remedy="Give a new folder, or remove what is there; samples are never written over.",
    )


def _occupied(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))
