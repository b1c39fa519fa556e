"""The data pack as training data: every judged image with what all sources say of it, and a clean crawl.

What belongs here: finding files, importing, slicing. What does not: what an answer means
(`annotation.importers`), training.
"""

import io
import json
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from compalign_dagster.annotation.assemble import assemble
from compalign_dagster.annotation.importers import SOURCES, import_datapack
from compalign_dagster.annotation.read import Line, parse_line
from compalign_dagster.crawl.index import concat, index_shard
from compalign_dagster.crawl.shards import Shard
from compalign_dagster.reward.data import TrainingData
from compalign_dagster.store import LocalStore

JUDGED = {
    "flickr8k": "flickr8k/shards/judged-00000.tar",
    "wiki": "wiki_context/shards/wiki-00000.tar",
    "coco": "coco_mini/shards/coco-00000.tar",
}
LIES_IN = {"expert": "flickr8k", "crowd": "flickr8k", "composite": "flickr8k", "context": "wiki"}  # others: coco
LABELERS = {  # how the labelers of a source are called
    "expert": "flickr8k-expert",
    "crowd": "flickr8k-crowd",
    "context": "context-",
}


@dataclass(frozen=True)
class Pack:
    """All sources in one set of tables, and the captions written for the images of flickr8k."""

    data: TrainingData
    own_captions: Mapping[str, list[str]]  # by image_id


def missing(pack: Path) -> list[str]:
    """What of the data pack is not there."""
    wanted = [*JUDGED.values(), *(source.file for source in SOURCES.values()), "flickr8k/shards/train-00000.tar"]
    return [name for name in wanted if not (pack / name).is_file()]


def load(pack: Path, work: Path, *, judged: int | None = None, train: int | None = None, seed: int = 7) -> Pack:
    """Everything, or a slice: so many judged images of flickr8k and so many images of the crawl.

    `work` is a folder for what the pack does not hold as it is needed.
    """
    _name_captions(pack / JUDGED["wiki"], work / "wiki.tar")
    files = {name: pack / file for name, file in JUDGED.items()} | {"wiki": work / "wiki.tar"}
    shards = {name: Shard(f"judged/{name}.tar", LocalStore(file.parent), file.name) for name, file in files.items()}
    lines: list[Line] = []
    for source in SOURCES:
        shard = shards[LIES_IN.get(source, "coco")].name
        for number, line in enumerate(import_datapack(pack, source, shard=shard), start=1):
            if source == "crowd":  # pooled votes of strangers; half a million comparisons of them would teach little
                line["judgements"] = [{**said, "ranking": []} for said in line["judgements"]]
            parsed = parse_line(json.dumps(line).encode(), source, number)
            assert isinstance(parsed, Line), parsed
            lines.append(parsed)
    tables = assemble(lines, [], list(shards.values()), seed=seed)
    assert not tables.rejected.num_rows, tables.rejected.to_pylist()[:3]
    own: dict[str, list[str]] = {}
    for row in index_shard(shards["flickr8k"]).pairs.select(["image_sha256", "caption"]).to_pylist():
        own.setdefault(row["image_sha256"], []).append(row["caption"])
    crawl = _crawl(pack, train)
    whole = TrainingData(
        tables.images,
        tables.captions,
        tables.ranks,
        tables.comparisons,
        concat([index_shard(shard) for shard in crawl]).pairs,
        {shard.name: shard for shard in (*shards.values(), *crawl)},
    )
    if train is not None:
        kept = sorted(set(whole.crawl["image_sha256"].to_pylist()))[:train]
        whole = replace(whole, crawl=_among(whole.crawl, "image_sha256", kept))
    if judged is not None:
        flickr = sorted(own)
        others = set(whole.images["image_id"].to_pylist()) - set(flickr)
        whole = of_images(whole, {*flickr[:judged], *others})
    return Pack(whole, own)


def of_source(data: TrainingData, sources: Sequence[str]) -> TrainingData:
    """What these sources say, and the images and captions they say it of."""
    names = tuple(LABELERS.get(source, source) for source in sources)

    def theirs(table: pa.Table) -> pa.Table:
        return table.filter(
            pa.array([labeler.startswith(names) for labeler in table["labeler"].to_pylist()], pa.bool_())
        )

    ranks, comparisons = theirs(data.ranks), theirs(data.comparisons)
    judged = set(zip(ranks["image_id"].to_pylist(), ranks["caption_id"].to_pylist(), strict=True))
    places = zip(data.captions["image_id"].to_pylist(), data.captions["caption_id"].to_pylist(), strict=True)
    captions = data.captions.filter(pa.array([place in judged for place in places], pa.bool_()))
    images = _among(data.images, "image_id", {image for image, _ in judged})
    return replace(data, images=images, captions=captions, ranks=ranks, comparisons=comparisons)


def of_images(data: TrainingData, images: Collection[str]) -> TrainingData:
    """What is said of these images."""
    tables = {name: _among(getattr(data, name), "image_id", images)
              for name in ("images", "captions", "ranks", "comparisons")}  # fmt: skip
    return replace(data, **tables)


def _name_captions(source: Path, target: Path) -> None:
    """Copy a shard whose .json files call captions descriptions, so that its images count as captioned."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            stream = old.extractfile(member)
            data = stream.read() if stream else b""
            if member.name.endswith(".json"):
                facts = json.loads(data)
                data = json.dumps({**facts, "captions": facts["descriptions"]}).encode()
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def _crawl(pack: Path, train: int | None) -> list[Shard]:
    files = sorted((pack / "flickr8k/shards").glob("train-*.tar"))
    files = files if train is None else files[: -(-train // 1000)]
    return [Shard(f"crawl/{file.name}", LocalStore(file.parent), file.name) for file in files]


def _among(table: pa.Table, column: str, values: Collection[str]) -> pa.Table:
    return table.filter(pc.is_in(table[column], value_set=pa.array(sorted(values), pa.string())))
