"""The whole graph with every folder in a bucket, over HTTP: the bytes of a disk, and no credentials anywhere."""

import json
import logging
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster_aws.s3 import S3Resource

from compalign_dagster import latest, parquet
from compalign_dagster.artifacts import Input
from compalign_dagster.cli import demo
from compalign_dagster.crawl.batches import read_log
from compalign_dagster.definitions import build_defs
from compalign_dagster.lineage.chain import check, verify
from compalign_dagster.samples.crawl import write_sample_crawl
from compalign_dagster.settings import Settings, load
from compalign_dagster.store import LocalStore, Store
from compalign_dagster.store.bucket import BucketStore
from compalign_dagster.versions import digest_bytes
from resources.storage import Storage
from tests.support.fault_proxy import FaultProxy, refuse
from tests.support.leaks import everything, leaks
from tests.support.pipeline import BATCH, Pipeline, failures, metadata_of, pairs_by_shard
from tests.support.processes import compalign, environment
from tests.support.s3_server import S3, fresh_bucket

pytestmark = [pytest.mark.slow, pytest.mark.system]

_PLACES = ("store", "landing", "labels", "evaluation")
_QUICK = {
    "settle_seconds": 0,
    "pretrain_steps": 4,
    "train_steps": 6,
    "batch_images": 8,
    "evaluation_steps": 4,
    "min_cross_image_auc": 0.5,
}
# Hexadecimal, so that no escaping or quoting can hide them from a search.
_SECRETS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(12)}",
    "AWS_SECRET_ACCESS_KEY": f"5ec2e7{secrets.token_hex(20)}",
    "AWS_SESSION_TOKEN": f"70ce2{secrets.token_hex(40)}",
}


@dataclass(frozen=True)
class World:
    """One sample, run through the graph on a disk and in a bucket."""

    s3: S3
    local: Pipeline
    remote: Pipeline
    folder: Path  # Dagster's files, what was logged, what was printed
    environment: dict[str, str]


def _run_all(pipeline: Pipeline) -> Pipeline:
    pipeline.learn()
    pipeline.score_and_filter()
    pipeline.must("evaluate")
    return pipeline


def _in_bucket(s3: S3, home: Path, **changes: object) -> Settings:
    return load(home=home, **_QUICK, **{name: f"{s3.url}/{name}" for name in _PLACES}, **changes)


def _pipeline(settings: Settings, instance: dg.DagsterInstance) -> Pipeline:
    return Pipeline(settings, build_defs(settings=settings), instance)


def _instance(folder: Path) -> dg.DagsterInstance:
    """An instance with its databases and captured output in this folder."""
    return dg.DagsterInstance.local_temp(str(folder), overrides={"telemetry": {"enabled": False}})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Iterator[World]:
    disk, folder = tmp_path_factory.mktemp("disk"), tmp_path_factory.mktemp("seen")
    write_sample_crawl(disk, seed=3, pairs=120, judged_images=60, evaluation_pairs=24, shard_pairs=40)
    s3 = fresh_bucket(s3_endpoint)
    for path in sorted(path for path in disk.rglob("*") if path.is_file()):
        s3.client.upload_file(str(path), s3.bucket, path.relative_to(disk).as_posix())
    handler, root = logging.FileHandler(folder / "python.log"), logging.getLogger()
    level = root.level
    env = s3.env() | _SECRETS
    with pytest.MonkeyPatch.context() as patch, _instance(folder) as instance:
        for name, value in env.items():
            patch.setenv(name, value)
        root.addHandler(handler)
        root.setLevel(logging.INFO)  # as the committed dagster.yaml has it
        try:
            local = _run_all(_pipeline(load(home=disk, **_QUICK), dg.DagsterInstance.ephemeral()))
            remote = _run_all(_pipeline(_in_bucket(s3, folder / "home"), instance))
            yield World(s3, local, remote, folder, environment(folder / "home") | env)
        finally:
            root.setLevel(level)
            root.removeHandler(handler)


def _ledger(store: Store) -> list[dict]:
    return parquet.read(latest.require(store, "score_ledger").fetch("ledger.parquet")).to_pylist()


def _objects(s3: S3) -> dict[str, str]:
    return {key: s3.client.head_object(Bucket=s3.bucket, Key=key)["ETag"] for key in sorted(s3.keys())}


def test_pairs_scores_and_kept_set_are_those_of_the_same_run_on_a_disk(world):
    here, there = world.local.store, world.remote.store
    assert isinstance(here, LocalStore) and isinstance(there, BucketStore)
    digests = [
        [(row["shard"], row["index_version"], row["data_version"], row["model_version"]) for row in _ledger(store)]
        for store in (here, there)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3
    for kind in ("coco_hf_annotations", "reward_model", "filtered_dataset", "eval_report"):
        assert latest.require(here, kind).data_version == latest.require(there, kind).data_version, kind
    keys = [{row["pairs_key"] for row in _ledger(store)} for store in (here, there)]
    assert not keys[0] & keys[1], "the bucket's shards landed at another time, and have other stamps"


def test_nothing_is_written_beside_the_bucket(world):
    left = [path for path in (world.folder / "home").rglob("*") if not path.is_dir()]
    assert not left, "checkpoints of a training are gone once its model is published"
    assert not list(Path.cwd().glob("s3:*")), "a URL taken for a path makes such a folder"


def _lying_there(s3: S3, source: Input) -> str | None:
    """The data version that an input from outside the store has now, read with a plain client."""
    key = {
        "landed_shard": source.key.removeprefix(f"{s3.url}/"),
        "label_export": f"labels/{source.key}",
        "evaluation_shard": f"evaluation/{source.key}",
    }[source.kind]
    answer = s3.client.get_object(Bucket=s3.bucket, Key=key)
    return answer["ETag"].strip('"') if source.kind == "evaluation_shard" else digest_bytes(answer["Body"].read())


def test_the_demo_says_where_in_the_bucket_dataset_and_report_lie(world, capsys):
    demo._report(world.remote.settings, demo.Tally(), 0.0)
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    for name in ("dataset", "report"):
        assert said[name].removeprefix(f"{world.s3.url}/") in set(world.s3.keys()), said[name]


def test_the_chain_from_the_report_to_what_has_landed_verifies_from_the_bucket_alone(world):
    store = BucketStore(f"{world.s3.url}/store", world.s3.client)
    found = check(latest.require(store, "eval_report"))
    assert not found.faults
    assert {source.kind for source in found.outside} == {"landed_shard", "label_export", "evaluation_shard"}
    assert [_lying_there(world.s3, source) for source in found.outside] == [item.data_version for item in found.outside]


def test_the_planted_bug_of_an_object_that_was_written_over_is_found_in_the_chain(world):
    store = BucketStore(f"{world.s3.url}/store", world.s3.client)
    key = f"store/{latest.require(store, 'filtered_dataset').file_key('lists.parquet')}"
    place = {"Bucket": world.s3.bucket, "Key": key}
    right = world.s3.client.get_object(**place)["Body"].read()
    world.s3.client.put_object(**place, Body=right[:-1] + bytes([right[-1] ^ 1]))
    try:
        problems = verify(latest.require(store, "eval_report"))
        assert any("lists.parquet: sha256 is" in text for text in problems), problems
    finally:
        world.s3.client.put_object(**place, Body=right)


def test_asking_again_makes_nothing(world):
    before = _objects(world.s3)
    pipeline = world.remote
    for job, partition, names in (
        ("land_batch", None, []),
        ("index_batch", BATCH, ["raw_crawl"]),
        ("learn_reward", None, ["coco_hf_annotations", "reward_model"]),
        ("promote_model", None, []),
        ("score_batch", BATCH, ["scored_shards"]),
        ("refilter", None, ["score_ledger", "filtered_dataset"]),
        ("evaluate", None, ["eval_report"]),
    ):
        result = pipeline.must(job, partition)
        for name in names:
            assert metadata_of(result, name)["reused"] is True, name
    assert _objects(world.s3) == before


def test_a_shard_that_vanished_or_changed_after_it_was_scored_costs_pictures_and_not_the_dataset(world):
    client, bucket = world.s3.client, world.s3.bucket
    first, second, _ = sorted(_shards_of_the_dataset(world.remote.store))
    places = [{"Bucket": bucket, "Key": f"landing/{name}"} for name in (first, second)]
    bodies = [client.get_object(**place)["Body"].read() for place in places]
    client.delete_object(**places[0])
    client.put_object(**places[1], Body=bodies[0])
    try:
        trial = metadata_of(world.remote.must("refilter", keep_fraction="0.2"), "filtered_dataset")
    finally:
        for place, body in zip(places, bodies, strict=True):
            client.put_object(**place, Body=body)
    assert trial["kept"] == int(trial["pairs"] * 0.2 + 0.5)
    assert trial["reused"] is False


def _shards_of_the_dataset(store: Store) -> dict[str, set[str]]:
    return pairs_by_shard(latest.require(store, "filtered_dataset"))


def test_a_new_an_overwritten_and_a_deleted_shard_reach_the_next_dataset(world, tmp_path):
    pipeline, client, bucket = world.remote, world.s3.client, world.s3.bucket
    before = _shards_of_the_dataset(pipeline.store)
    overwritten, deleted, untouched = sorted(before)
    write_sample_crawl(tmp_path, seed=11, pairs=40, judged_images=5, evaluation_pairs=4, shard_pairs=20)
    first, second = sorted((tmp_path / "landing").rglob("*.tar"))
    client.upload_file(str(first), bucket, "landing/sample/90000.tar")
    client.upload_file(str(second), bucket, f"landing/{overwritten}")
    client.delete_object(Bucket=bucket, Key=f"landing/{deleted}")
    pipeline.must("land_batch")
    (batch,) = read_log(pipeline.store)[1:]
    assert [item.shard for item in batch.added] == ["sample/90000.tar"]
    assert [item.shard for item in batch.superseded] == [overwritten]
    assert batch.removed == (deleted,)
    pipeline.score_and_filter(batch.key)
    after = _shards_of_the_dataset(pipeline.store)
    assert after.keys() == {overwritten, untouched, "sample/90000.tar"}
    assert after[untouched] == before[untouched]
    assert after[overwritten] and not after[overwritten] & before[overwritten]


def _verb(world: World, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    done = compalign(*map(str, arguments), env=world.environment | env)
    with (world.folder / "verbs.log").open("a") as log:
        log.write(done.stdout + done.stderr)
    return done


def test_every_verb_reads_from_the_bucket(world, tmp_path):
    url = world.s3.url
    config = tmp_path / "quick.json"
    config.write_text(json.dumps({"pretrain_steps": 2, "steps": 2, "batch_images": 8}))
    verbs = [
        ("index", "--shards", f"{url}/landing", "--out", tmp_path / "index"),
        ("train", "--annotations", f"{url}/labels", "--shards", f"{url}/labels/shards", "--shards",
         f"{url}/landing/**/*.tar", "--config", config, "--out", tmp_path / "model"),
        ("score", "--model", tmp_path / "model", "--shards", f"{url}/landing/sample/*.tar", "--out",
         tmp_path / "scores.parquet"),
    ]  # fmt: skip
    for verb in verbs:
        done = _verb(world, *verb)
        assert done.returncode == 0, done.stderr
    world.s3.client.upload_file(str(tmp_path / "scores.parquet"), world.s3.bucket, "scores/a.parquet")
    kept = _verb(world, "keep", "--scores", f"{url}/scores/", "--fraction", "0.5", "--out", tmp_path / "kept.parquet")
    assert kept.returncode == 0, kept.stderr
    crawl = _shards_of_the_dataset(world.remote.store)
    indexed = pq.read_table(tmp_path / "index" / "pairs.parquet")
    assert set(indexed["pair_id"].to_pylist()) == set.union(*crawl.values())
    scored = pq.read_table(tmp_path / "scores.parquet")
    assert {f"sample/{name}" for name in scored["shard"].to_pylist()} == {
        name for name in crawl if name.startswith("sample/")
    }
    assert pq.read_table(tmp_path / "kept.parquet").num_rows == int(scored.num_rows * 0.5 + 0.5)


def test_a_bucket_that_is_not_there_or_refuses_fails_the_run_with_the_remedy(world, s3_endpoint, monkeypatch):
    absent = load(home=world.folder / "home", **_QUICK, **{name: f"s3://absent-{name}" for name in _PLACES})
    result = _pipeline(absent, world.remote.instance).run("land_batch")
    assert not result.success
    assert "NoSuchBucket" in failures(result)[0] and "Create the bucket" in failures(result)[0]
    done = _verb(world, "index", "--shards", "s3://absent-landing/x", "--out", world.folder / "none")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr

    with FaultProxy(s3_endpoint) as proxy:
        # A server that gives back what it was sent must not bring it into our messages.
        told = refuse(403, "InvalidAccessKeyId", " ".join(_SECRETS.values()))
        for kind in ("list", "get", "head", "put_new"):
            proxy.inject(kind, told, first=None)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        refused = _pipeline(_in_bucket(world.s3, world.folder / "home"), world.remote.instance).run("land_batch")
        assert not refused.success
        assert "InvalidAccessKeyId" in failures(refused)[0] and "AWS_PROFILE" in failures(refused)[0]
        there = f"{world.s3.url}/landing"
        done = _verb(world, "index", "--shards", there, "--out", world.folder / "none", AWS_ENDPOINT_URL=proxy.endpoint)
        assert done.returncode == 2 and "InvalidAccessKeyId" in done.stderr


def test_every_read_goes_through_the_client_that_the_s3_resource_names(world, s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # boto3's own chain leads nowhere
    settings = _in_bucket(world.s3, world.folder / "home").model_copy(update={"store": f"{world.s3.url}/second"})
    plain = Storage.from_settings(settings)
    urls = {name: getattr(plain, name) for name in type(plain).model_fields if name.endswith("_url")}
    storage = Storage(**urls, s3=S3Resource(endpoint_url=s3_endpoint))
    defs = build_defs(settings=settings, resources={"storage": storage})
    pipeline = Pipeline(settings, defs, dg.DagsterInstance.ephemeral())
    for job, partition in (("land_batch", None), ("index_batch", BATCH), ("learn_reward", None)):
        pipeline.must(job, partition)
    wrong = _pipeline(settings, dg.DagsterInstance.ephemeral()).run("land_batch")
    assert not wrong.success and "127.0.0.1:9" in failures(wrong)[0], "the chain does lead nowhere"


def test_no_credential_is_in_the_event_log_the_logs_the_messages_or_the_bucket(world):
    assert not leaks(world.folder, world.s3, _SECRETS.values())
    searched = {Path(place).name for place, _ in everything(world.folder, world.s3)}
    assert {
        "runs.db",
        "python.log",
        "verbs.log",
        "manifest.json",
        "ranked.parquet",
        "lists.parquet",
        "page.html",
    } <= searched


def _plant_in_metadata(folder: Path, s3: S3, secret: str) -> None:
    with _instance(folder) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("planted", metadata={"url": f"s3://{secret}@b"}))


def _plant_in_a_snapshot(folder: Path, s3: S3, secret: str) -> None:
    @dg.job(description=f"scores with {secret}")
    def planted() -> None:
        dg.op(name="look")(lambda: None)()

    with _instance(folder) as instance:
        assert planted.execute_in_process(instance=instance).success


def _plant_in_an_object(folder: Path, s3: S3, secret: str) -> None:
    s3.client.put_object(Bucket=s3.bucket, Key="store/planted", Body=b"x", Metadata={"who": secret})


def _plant_in_a_table(folder: Path, s3: S3, secret: str) -> None:
    pq.write_table(pa.table({"detail": [secret] * 3}), folder / "planted.parquet", compression="zstd")


def _plant_in_a_log(folder: Path, s3: S3, secret: str) -> None:
    (folder / "python.log").write_text(f"GET /?X-Amz-Credential={secret}%2F2026\n")


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (_plant_in_metadata, "AWS_ACCESS_KEY_ID"),
        (_plant_in_a_snapshot, "AWS_SECRET_ACCESS_KEY"),
        (_plant_in_an_object, "AWS_SESSION_TOKEN"),
        (_plant_in_a_table, "AWS_SECRET_ACCESS_KEY"),
        (_plant_in_a_log, "AWS_ACCESS_KEY_ID"),
    ],
)
def test_the_planted_bug_of_a_leaked_credential_is_found(s3, tmp_path, plant, name):
    folder = tmp_path / "seen"
    folder.mkdir()
    assert not leaks(folder, s3, _SECRETS.values())
    plant(folder, s3, _SECRETS[name])
    assert leaks(folder, s3, _SECRETS.values())
