"""Fifty planted images, asked for in five ways: all copies are found, blocked in the next version, purged, stopped."""

import io
import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from compalign_dagster.lineage import places, takedown
from compalign_dagster.pages.images import thumbnail_uri
from compalign_dagster.reward.promoted import Reason
from compalign_dagster.selection.blocks import entry
from tests.support.shard_builder import tar
from tests.support.small_version import small_store
from tests.unit.lineage.scanning import traces

pytestmark = [pytest.mark.slow]

PLANTED = 50
WAYS = ("pair_id", "image_sha256", "url", "url_host", "image_near")
SMALL = (128, 96)
WHY = Reason("an auditor", "fifty people asked")


def drawn(at: int, size=(256, 192), quality=92) -> bytes:
    """A picture that no other is near, in some size: what is drawn depends on `at` alone."""
    small = np.random.default_rng(at).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((256, 192), Image.Resampling.BICUBIC).resize(size)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def member(key: str, image: bytes, caption: str, url: str | None):
    fields = {"captions": [caption], **({"url": url} if url else {})}
    return [(f"{key}.jpg", image), (f"{key}.json", json.dumps(fields).encode())]


def caption(at: int, copy: str) -> str:
    return f"planted picture number {at:03d}, the {copy} one, as nobody else says it"


def host(at: int) -> str:
    return f"person{at}.example.org"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Originals in a batch; in the next, exact copies under other URLs, and smaller ones without a URL."""
    small = small_store(tmp_path_factory.mktemp("planted") / "home", pairs=8, batches=1)
    land(small, "web/00100.tar", "o", lambda at: (drawn(at), caption(at, "first"), f"https://{host(at)}/{at}.jpg"))
    small.settle()
    land(
        small, "shop/00102.tar", "c", lambda at: (drawn(at), caption(at, "second"), f"https://Cdn.{host(at)}:443/a.jpg")
    )
    land(small, "shop/00104.tar", "s", lambda at: (drawn(at, SMALL, 70), caption(at, "small"), None))
    small.settle()
    small.filter(keep_fraction="1")
    small.filter(keep_fraction="0.9")
    return small


def land(small, shard: str, letter: str, sample) -> None:
    """Write a shard of fifty samples; `sample` gives image, caption and URL."""
    members = [one for at in range(PLANTED) for one in member(f"{letter}{at}", *sample(at))]
    (small.home / "landing" / shard).write_bytes(tar(members))


def rows_of(small) -> pl.DataFrame:
    return pl.concat([places.index_of(small.store, item) for item in places.deliveries(small.store)])


def asked(small) -> list:
    """A fifth of the planted images by each kind of entry."""
    rows = rows_of(small)
    found = []
    for at in range(PLANTED):
        kind = WAYS[at % len(WAYS)]
        row = rows.filter(key=f"o{at}").to_dicts()[0]
        value = {"url_host": host(at), "image_near": row["image_phash"]}.get(kind) or row[kind]
        found.append(entry(kind, value, request=f"person {at}"))
    return found


def expected(at: int) -> set[str]:
    """Keys that a request of this kind must reach: a near one all three, an image or a host two, others one."""
    kind = WAYS[at % len(WAYS)]
    return {"pair_id": {f"o{at}"}, "url": {f"o{at}"}, "url_host": {f"o{at}", f"c{at}"},
            "image_sha256": {f"o{at}", f"c{at}"}, "image_near": {f"o{at}", f"c{at}", f"s{at}"}}[kind]  # fmt: skip


def test_every_copy_is_found_in_every_version_blocked_in_the_next_and_gone_after_a_purge(planted):
    small, entries = planted, asked(planted)
    hits = places.reached(small.store, entries, places.deliveries(small.store))
    by_request = {name: set(part["key"]) for (name,), part in hits.partition_by("request", as_dict=True).items()}
    assert [at for at in range(PLANTED) if by_request.get(f"person {at}") != expected(at)] == []

    told = takedown.request(small.store, entries, WHY)
    assert [one["kept"] + one["dropped"] for one in told["versions"]] == [hits.height] * 2

    version = small.filter(keep_fraction="1")
    blocked = pl.concat([version.decided(batch) for batch in version.batches()]).filter(reason="takedown")
    assert set(blocked.select("shard", "key").iter_rows()) == set(hits.select("shard", "key").iter_rows())

    doomed = takedown.doomed(small.store, entries)
    copies = set(doomed["key"])
    assert {f"{letter}{at}" for at in range(PLANTED) for letter in "oc"} <= copies
    rows = rows_of(small).filter(pl.col("key").is_in(sorted(copies)))
    images = [drawn(int(key[1:]), *((SMALL, 70) if key[0] == "s" else ())) for key in sorted(copies)]
    needles = [*images, *(thumbnail_uri(image).encode() for image in images)]
    needles += [text.encode() for name in ("caption", "url") for text in rows[name].drop_nulls()]
    assert len(traces(small.home / "store", needles)) > 5

    done, _ = takedown.destroy(small.store, small.landing, entries, WHY)
    assert traces(small.home, needles) == []
    assert [text for text in done.remaining if "Reward model" not in text] == []

    land(small, "web/00200.tar", "later", lambda at: (drawn(at), caption(at, "third"), None))
    small.settle()
    version = small.filter(keep_fraction="1")
    back = pl.concat([version.decided(batch) for batch in version.batches()]).filter(shard="web/00200.tar")
    assert back["reason"].to_list() == ["takedown"] * PLANTED
