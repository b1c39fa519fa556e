"""The photo crawl: a noisy crawl made from real photos, real captions and real web alt text.

What belongs here: laying out landing, labels, evaluation and truth from the data pack. What does
not: what a judgement means (`annotation.importers`) and the rendered sample (`crawl.py`). The
noise is injected, so the crawl is not evidence about how noisy the web is.

    OUT/landing/photos/0000N.tar       images byte for byte; `captions` in each .json, some spoiled
    OUT/labels/judgements.jsonl        the expert judgements, in the annotation contract
    OUT/labels/shards/judged/*.tar     the judged photos' shard, byte for byte
    OUT/more_labels/*.jsonl            the crowd and composite judgements of the same photos
    OUT/evaluation/dev/00000.tar       clean held-out photos and captions, byte for byte
    OUT/truth/captions.parquet         which caption was spoiled and how; no asset reads it
"""

import io
import json
import logging
import random
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from compalign_dagster.annotation.foreign import sample_key, write_lines
from compalign_dagster.annotation.importers import import_datapack
from compalign_dagster.errors import InputError
from compalign_dagster.parquet import column, from_rows, write
from compalign_dagster.versions import digest_bytes, digest_file

log = logging.getLogger(__name__)

SHARD_IMAGES = 1000
JUDGED_SHARD = "judged/00000.tar"
ALT_TEXT = "web_alt_text/laion_10k_url_text.parquet"

TRUTH = pa.schema(
    [
        column("shard", pa.string(), "shard below landing"),
        column("key", pa.string(), "sample key"),
        column("caption_index", pa.int32(), "place in the sample's captions"),
        column("kind", pa.string(), "own | other_image | alt_text"),
        column("origin", pa.string(), "key of the photo the caption was written for, or the alt text's URL"),
    ]
)


@dataclass(frozen=True)
class _Photo:
    key: str
    image: bytes
    width: int
    height: int
    captions: tuple[str, ...]


def write_photo_crawl(
    datapack: Path,
    out: Path,
    *,
    seed: int = 7,
    spoiled: float = 0.7,
    images: int | None = None,
) -> dict[str, Any]:
    """Write the photo crawl below `out` and return counts.

    Of all captions of the train photos, `spoiled` (0 to 1) are replaced: two thirds by a caption of
    another train photo, one third by a web alt text, each alt text at most once while they last.
    `images` takes only so many photos, drawn with the seed. Equal arguments give equal bytes.

    Raises `InputError` where the data pack is incomplete or altered, or `out` already holds a crawl.
    """
    _check_arguments(datapack, out, spoiled, images)
    photos = list(_read_photos(sorted((datapack / "flickr8k/shards").glob("train-*.tar"))))
    rng = random.Random(seed)
    if images is not None and images < len(photos):
        photos = [photos[place] for place in sorted(rng.sample(range(len(photos)), images))]
    captions, truth = _spoil(photos, _alt_texts(datapack / ALT_TEXT), spoiled, rng)

    log.info("writing %d photos with %d captions", len(photos), len(truth))
    for start in range(0, len(photos), SHARD_IMAGES):
        name = f"photos/{start // SHARD_IMAGES:05d}.tar"
        stop = start + SHARD_IMAGES
        _write_shard(out / "landing" / name, photos[start:stop], captions[start:stop])
    write(from_rows(truth, TRUTH), out / "truth/captions.parquet")
    _copy(datapack / "flickr8k/shards/judged-00000.tar", out / "labels/shards" / JUDGED_SHARD)
    _copy(datapack / "flickr8k/shards/dev-00000.tar", out / "evaluation/dev/00000.tar")
    lines = {}
    for source, file in {
        "expert": "labels/judgements.jsonl",
        "crowd": "more_labels/crowd.jsonl",
        "composite": "more_labels/composite.jsonl",
    }.items():
        lines[source] = write_lines(import_datapack(datapack, source, shard=JUDGED_SHARD), out / file)
    kinds = [row["kind"] for row in truth]
    return {
        "out": str(out),
        "seed": seed,
        "spoiled": spoiled,
        "shards": -(-len(photos) // SHARD_IMAGES),
        "images": len(photos),
        "captions": len(truth),
        "captions_by_kind": {kind: kinds.count(kind) for kind in ("own", "other_image", "alt_text")},
        "judged_images": lines,
        "evaluation_shards": 1,
    }


def _check_arguments(datapack: Path, out: Path, spoiled: float, images: int | None) -> None:
    if not 0 <= spoiled <= 1:
        raise InputError(
            "spoiled share",
            expected="a number from 0 to 1",
            found=str(spoiled),
            remedy="Give for example 0.7.",
        )
    if images is not None and images < 2:
        raise InputError(
            "number of images",
            expected="at least 2",
            found=str(images),
            remedy="Another image's caption needs one.",
        )
    taken = [name for name in ("landing", "labels", "evaluation", "truth") if (out / name).exists()]
    if taken:
        raise InputError(
            f"folder {out}",
            expected="no crawl in it yet",
            found=", ".join(f"{name}/" for name in taken),
            remedy="Give a new folder; crawls are never written over.",
        )
    wanted = [
        *(f"flickr8k/shards/train-{number:05d}.tar" for number in range(6)),
        "flickr8k/shards/judged-00000.tar",
        "flickr8k/shards/dev-00000.tar",
        "flickr8k/judgments_expert.parquet",
        "flickr8k/judgments_crowd.parquet",
        "flickr8k/judgments_composite.parquet",
        ALT_TEXT,
    ]
    missing = [name for name in wanted if not (datapack / name).is_file()]
    if missing:
        raise InputError(
            f"data pack {datapack}",
            expected="flickr8k/ and web_alt_text/ as its README lists them",
            found=f"no {missing[0]}" + (f" and {len(missing) - 1} more missing" if missing[1:] else ""),
            remedy="Give the data pack's root folder.",
        )
    _check_digests(datapack, wanted)


def _check_digests(datapack: Path, wanted: Sequence[str]) -> None:
    """Compare the files to be used with the data pack's own list, where it has one."""
    manifest = datapack / "MANIFEST.sha256"
    if not manifest.is_file():
        return
    listed = {}
    for line in manifest.read_text().splitlines():
        digest, _, name = line.partition("  ")
        listed[name.strip().removeprefix("./")] = digest
    for name in wanted:
        if name in listed and digest_file(datapack / name) != listed[name]:
            raise InputError(
                f"data pack file {name}",
                expected=f"sha256 {listed[name]}",
                found="other bytes",
                remedy="Copy the data pack again.",
            )


def _read_photos(shards: Sequence[Path]) -> Iterator[_Photo]:
    for path in shards:
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar if member.isfile()}

            def content(name: str, tar: tarfile.TarFile = tar, members: dict = members) -> bytes:
                stream = tar.extractfile(members[name])
                assert stream is not None  # only regular files were taken
                return stream.read()

            for name in members:
                if name.endswith(".jpg"):
                    facts = json.loads(content(f"{name.removesuffix('.jpg')}.json"))
                    yield _Photo(
                        sample_key(name),
                        content(name),
                        facts["width"],
                        facts["height"],
                        tuple(facts["captions"]),
                    )


def _alt_texts(path: Path) -> list[tuple[str, str]]:
    table = pq.read_table(path, columns=["TEXT", "URL"], use_threads=False)
    return [(row["TEXT"], row["URL"]) for row in table.to_pylist() if row["TEXT"] and row["TEXT"].strip()]


def _spoil(
    photos: Sequence[_Photo], alt_texts: Sequence[tuple[str, str]], share: float, rng: random.Random
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Each photo's captions after spoiling, and one truth row per caption."""
    places = [(photo, index) for photo, item in enumerate(photos) for index in range(len(item.captions))]
    chosen = rng.sample(places, round(share * len(places)))
    by_other = round(len(chosen) * 2 / 3)
    alt_order = rng.sample(alt_texts, len(alt_texts))
    captions = [list(photo.captions) for photo in photos]
    marks = {}
    for number, (photo, index) in enumerate(chosen):
        if number < by_other:
            other = (photo + rng.randrange(1, len(photos))) % len(photos)
            captions[photo][index] = rng.choice(photos[other].captions)
            marks[photo, index] = ("other_image", photos[other].key)
        else:
            captions[photo][index], url = alt_order[(number - by_other) % len(alt_order)]
            marks[photo, index] = ("alt_text", url)
    truth = []
    for photo, index in places:
        kind, origin = marks.get((photo, index), ("own", photos[photo].key))
        truth.append(
            {
                "shard": f"photos/{photo // SHARD_IMAGES:05d}.tar",
                "key": photos[photo].key,
                "caption_index": index,
                "kind": kind,
                "origin": origin,
            }
        )
    return captions, truth


def _write_shard(path: Path, photos: Sequence[_Photo], captions: Sequence[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for photo, texts in zip(photos, captions, strict=True):
            facts = {
                "key": photo.key,
                "status": "success",
                "captions": texts,
                "width": photo.width,
                "height": photo.height,
                "sha256": digest_bytes(photo.image),
            }
            _add(tar, f"{photo.key}.jpg", photo.image)
            _add(tar, f"{photo.key}.json", json.dumps(facts, ensure_ascii=False).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its defaults carry no time, owner or mode of this machine
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
