"""The operator's ten minutes: a bucket, `compalign ui`, shards that come and go; the daemon does the rest alone.

The referee (judgements and the promoted model) is the demo's, copied: a store in a bucket has the same keys.
"""

import hashlib
import io
import json
import shutil
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image

from compalign_dagster import latest
from compalign_dagster.crawl.batches import read_log
from compalign_dagster.crawl.index import make_pair_id
from compalign_dagster.definitions import build_defs
from compalign_dagster.samples.crawl import write_sample_crawl
from compalign_dagster.selection import current
from compalign_dagster.settings import load
from compalign_dagster.store.bucket import BucketStore
from tests.support.pipeline import BATCH, Pipeline, kept_pairs, pairs_by_shard
from tests.support.processes import BIN, ROOT, compalign, environment, free_port, stop_group, wait_for
from tests.support.s3_server import S3, fresh_bucket

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(1500)]

_PLACES = ("store", "landing", "labels", "evaluation")
_OF_THE_CRAWL = tuple(
    f"decisions/{name}"
    for name in ("batches/", "current/", "latest/raw_crawl/", "latest/scored_shards/", "latest/score_ledger/",
                 "latest/filtered_dataset/", "latest/eval_report/")
)  # fmt: skip
_UI_SECONDS, _CHANGE_SECONDS = 180, 540


@dataclass(frozen=True)
class Deployment:
    """A bucket with a promoted model, two shards and a dataset of them; the UI and its daemon are running."""

    s3: S3
    url: str
    pages: str
    log: Path
    began: float
    shards: list[Path]  # more of them, not landed yet

    @property
    def store(self) -> BucketStore:
        return BucketStore(f"{self.s3.url}/store", self.s3.client)

    def land(self, shard: Path, name: str) -> None:
        self.s3.client.upload_file(str(shard), self.s3.bucket, f"landing/{name}")

    def ask(self, query: str, **variables: object) -> dict:
        """The answer of Dagster's GraphQL."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]

    def newest(self) -> tuple[str, int]:
        """Run and pair count of the newest materialisation of `filtered_dataset`, as Dagster shows them."""
        query = """{ assetNodeOrError(assetKey: {path: ["filtered_dataset"]}) { ... on AssetNode {
            assetMaterializations(limit: 1) { runId metadataEntries { label ... on IntMetadataEntry { intValue } } }
        } } }"""
        (event,) = self.ask(query)["assetNodeOrError"]["assetMaterializations"]
        (pairs,) = [entry["intValue"] for entry in event["metadataEntries"] if entry["label"] == "pairs"]
        return event["runId"], pairs

    def wait(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + _CHANGE_SECONDS
        while not until():
            assert time.monotonic() < end, self.log.read_text()[-6000:]
            time.sleep(3)

    def pairs_by_shard(self) -> dict[str, set[str]]:
        """Pair ids of the current dataset, kept and dropped ones."""
        return pairs_by_shard(current.read(self.store))


def _fill(s3: S3, demo, crawl: list[Path]) -> None:
    """The demo's labels, evaluation shards and referee, and a crawl of other shards."""
    folders = [demo.home / name for name in ("store", "labels", "evaluation")]
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        key = path.relative_to(demo.home).as_posix()
        if not key.removeprefix("store/").startswith(_OF_THE_CRAWL):
            s3.client.upload_file(str(path), s3.bucket, key)
    for at, path in enumerate(crawl):
        s3.client.upload_file(str(path), s3.bucket, f"landing/cc12m/{at:05d}.tar")


def _first_dataset(s3: S3, home: Path) -> None:
    """What a person starts once: land, index, promote, score, filter, recorded in the instance of the UI."""
    (home / "dagster").mkdir(parents=True)
    shutil.copyfile(ROOT / "deploy" / "local" / "dagster.yaml", home / "dagster" / "dagster.yaml")
    settings = load(home=home, **{name: f"{s3.url}/{name}" for name in _PLACES})
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        for name, value in s3.env().items():
            patch.setenv(name, value)
        pipeline = Pipeline(settings, build_defs(settings=settings), instance)
        for job, partition in (("land_batch", None), ("index_batch", BATCH), ("promote_model", None)):
            pipeline.must(job, partition)
        pipeline.score_and_filter()


@pytest.fixture(scope="module")
def deployment(demo, s3_endpoint, tmp_path_factory) -> Iterator[Deployment]:
    home, sample = tmp_path_factory.mktemp("operator"), tmp_path_factory.mktemp("sample")
    write_sample_crawl(sample, seed=29, pairs=200, judged_images=5, evaluation_pairs=5, shard_pairs=40)
    shards = sorted((sample / "landing").rglob("*.tar"))
    s3 = fresh_bucket(s3_endpoint)
    _fill(s3, demo, shards[:2])
    _first_dataset(s3, home)
    port, pages = free_port(), free_port()
    places = {name: f"{s3.url}/{name}" for name in _PLACES}
    env = environment(home, pages_port=pages, **places) | s3.env()
    checked = compalign("doctor", env=env)
    assert checked.returncode == 0, checked.stdout
    log = home / "ui.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(BIN / "compalign"), "ui", "--port", str(port)],
            cwd=ROOT,
            env=env,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/server_info", _UI_SECONDS)
            addresses = (f"http://127.0.0.1:{port}", f"http://127.0.0.1:{pages}")
            yield Deployment(s3, *addresses, log, time.time(), shards[2:])
        finally:
            stop_group(process)


def test_a_shard_that_is_dropped_into_the_bucket_reaches_the_dataset_by_itself(deployment):
    run, pairs = deployment.newest()
    deployment.land(deployment.shards[0], "cc12m/00002.tar")
    deployment.wait(lambda: deployment.newest()[1] > pairs)
    now, more = deployment.newest()
    assert now != run
    found = deployment.pairs_by_shard()
    assert found.keys() == {f"cc12m/0000{at}.tar" for at in range(3)}
    indexed = latest.require(deployment.store, "raw_crawl", read_log(deployment.store)[-1].key).facts
    assert more == pairs + indexed["pairs"]


def test_pairs_of_an_overwritten_and_of_a_deleted_shard_leave_the_dataset(deployment):
    before = deployment.pairs_by_shard()
    deployment.land(deployment.shards[1], "cc12m/00000.tar")
    deployment.s3.client.delete_object(Bucket=deployment.s3.bucket, Key="landing/cc12m/00001.tar")

    def arrived() -> bool:
        now = deployment.pairs_by_shard()
        return "cc12m/00001.tar" not in now and not now["cc12m/00000.tar"] & before["cc12m/00000.tar"]

    deployment.wait(arrived)
    after = deployment.pairs_by_shard()
    assert after.keys() == {"cc12m/00000.tar", "cc12m/00002.tar"}
    assert after["cc12m/00002.tar"] == before["cc12m/00002.tar"]
    assert deployment.newest()[1] == current.read(deployment.store).facts["pairs"]


def test_the_automation_alone_started_runs_none_failed_and_no_batch_was_done_twice(deployment):
    query = """query ($after: Float) { runsOrError(filter: {createdAfter: $after}) { ... on Runs { results {
        status tags { key value } assetSelection { path } } } } }"""
    runs = deployment.ask(query, after=deployment.began)["runsOrError"]["results"]
    asked: Counter[tuple[str, str]] = Counter()
    for run in runs:
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        assert tags["compalign/started_by"] == "automation", run
        assert run["status"] in ("SUCCESS", "STARTED"), run
        if batch := tags.get("dagster/partition"):
            asked.update((asset["path"][0], batch) for asset in run["assetSelection"])
    assert {name for name, _ in asked} == {"raw_crawl", "scored_shards"}
    assert set(asked.values()) == {1}, asked


def test_the_page_of_the_dataset_is_served_from_the_bucket(deployment):
    key = current.read(deployment.store).file_key("page.html")
    with urllib.request.urlopen(f"{deployment.pages}/{key}", timeout=30) as answer:
        assert b"<h1>Filtered dataset" in answer.read()


def test_kept_pairs_are_read_by_range_from_the_bucket_without_our_code(deployment):
    client, bucket = deployment.s3.client, deployment.s3.bucket
    kept = kept_pairs(current.read(deployment.store))
    assert len(kept) > 10
    for row in kept:
        last = row["image_offset"] + row["image_length"] - 1
        answer = client.get_object(
            Bucket=bucket, Key=f"landing/{row['shard']}", Range=f"bytes={row['image_offset']}-{last}"
        )
        data = answer["Body"].read()
        assert make_pair_id(hashlib.sha256(data).digest(), row["caption"].encode()) == row["pair_id"]
        Image.open(io.BytesIO(data)).verify()
