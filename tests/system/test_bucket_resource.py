"""The storage resource reaches buckets with the client that dagster-aws makes."""

import dagster as dg
import pytest
from dagster_aws.s3 import S3Resource

from compalign_dagster.store import AccessDeniedError, LocalStore, StoreError
from resources.storage import Storage
from tests.support.s3_server import KEY_ID, SECRET

pytestmark = [pytest.mark.system]


def storage(settings, s3: S3Resource) -> Storage:
    urls = {f"{name}_url": getattr(settings, name) for name in ("store", "landing", "labels", "evaluation")}
    return Storage(**urls, pages_url="", s3=s3)


def test_an_asset_reaches_a_bucket_through_dagsters_s3_resource(s3, settings, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY_ID)
    monkeypatch.setenv("MY_SECRET", SECRET)
    client = S3Resource(
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=dg.EnvVar("MY_KEY"),
        aws_secret_access_key=dg.EnvVar("MY_SECRET"),
    )
    seen: list[object] = []

    @dg.asset
    def writes(storage: Storage) -> None:
        storage.store.put_new("a", b"from an asset")
        seen.extend([storage.store.client, storage.store.client, storage.landing, f"{storage!r} {storage}"])

    resource = storage(settings.model_copy(update={"store": s3.url}), client)
    assert dg.materialize([writes], resources={"storage": resource}).success
    assert s3.client.get_object(Bucket=s3.bucket, Key="a")["Body"].read() == b"from an asset"
    assert s3.url in str(seen[3])
    assert SECRET not in str(seen[3])
    assert KEY_ID not in str(seen[3])
    assert seen[0] is seen[1], "one client for all stores of a resource"
    assert isinstance(seen[2], LocalStore)


def test_the_resource_takes_the_chains_variables_and_retries_in_standard_mode(s3, settings, monkeypatch):
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    client = Storage.from_settings(settings.model_copy(update={"store": s3.url})).store.client
    assert client.meta.endpoint_url == s3.endpoint
    assert client.meta.config.retries == {"mode": "standard", "total_max_attempts": 6}


def test_half_a_pair_of_keys_and_an_endpoint_that_is_no_url_are_errors_a_person_can_read(s3, settings, monkeypatch):
    named = settings.model_copy(update={"store": s3.url})
    with pytest.raises(AccessDeniedError, match="PartialCredentialsError") as caught:
        _ = storage(named, S3Resource(aws_secret_access_key=SECRET)).store
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"no url with {SECRET}")
    with pytest.raises(StoreError, match="endpoint") as malformed:
        _ = Storage.from_settings(named).store
    assert SECRET not in str(malformed.value)
