"""What is measured against: each a program that prints one JSON line, run in a process of its own.

    python rivals.py pillow PLACES          decode every image fully, nothing else
    python rivals.py webdataset SHARD...    list members with webdataset's tar iterator
    python rivals.py walk SHARD...          list members with this package's walk

Imports are inside the functions: webdataset's environment has nothing else.
"""

import io
import json
import sys
import time
from pathlib import Path


def pillow(places: str) -> dict:
    """CPU seconds of the whole process count; the images are read by their place, as cheaply as can be."""
    from PIL import Image

    images = 0
    for shard, offsets in json.loads(Path(places).read_text()).items():
        with Path(shard).open("rb") as stream:
            for offset, length in offsets:
                stream.seek(offset)
                with Image.open(io.BytesIO(stream.read(length))) as image:
                    image.load()
                images += 1
    return {"images": images}


def webdataset(*shards: str) -> dict:
    """Members and the CPU seconds of listing them, without the import."""
    from webdataset.tariterators import tar_file_iterator

    started, members = time.process_time(), 0
    for shard in shards:
        with Path(shard).open("rb") as stream:
            members += sum(1 for _ in tar_file_iterator(stream))
    return {"members": members, "cpu_seconds": time.process_time() - started}


def walk(*shards: str) -> dict:
    """The same with this package's reader."""
    from compalign_dagster.crawl import tar

    started, members = time.process_time(), 0
    for shard in shards:
        with Path(shard).open("rb") as stream:
            found = tar.walk(tar.Tape(stream), Path(shard).stat().st_size)
            members += sum(isinstance(item, tar.Member) for item in found)
    return {"members": members, "cpu_seconds": time.process_time() - started}


if __name__ == "__main__":
    print(json.dumps({"pillow": pillow, "webdataset": webdataset, "walk": walk}[sys.argv[1]](*sys.argv[2:])))
