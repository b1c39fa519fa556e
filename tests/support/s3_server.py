"""A real S3-compatible server on loopback, from an environment of its own (`make s3-server`).

It checks no signatures: what a server says to wrong credentials is injected by `fault_proxy.py`.
"""

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.support.processes import ROOT, free_port, wait_for
from tests.support.required import absent

PROGRAM = ROOT / ".venv-s3" / "bin" / "ministack"
KEY_ID, SECRET = "AKIATESTTESTTESTTEST", "hush/secret+of+the+tests"


@dataclass(frozen=True)
class S3:
    """A bucket on a running server, and what a process needs to use it."""

    endpoint: str
    bucket: str
    client: Any = field(repr=False)

    @property
    def url(self) -> str:
        """The bucket's URL."""
        return f"s3://{self.bucket}"

    def env(self, endpoint: str | None = None) -> dict[str, str]:
        """Environment variables that lead boto3's own chain here, or to a proxy before it."""
        return aws_variables(endpoint or self.endpoint)

    def keys(self, prefix: str = "") -> list[str]:
        """What is really there, hidden objects included."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def aws_variables(endpoint: str) -> dict[str, str]:
    """Environment variables for a server; no file of the user's is read."""
    return {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client_of(endpoint: str, *, attempts: int = 3, read_timeout: float = 10) -> Any:
    """A boto3 client that gives up soon."""
    return _session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(
            connect_timeout=2,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": attempts},
            s3={"addressing_style": "path"},
        ),
    )


@cache
def _session() -> Any:
    """One for all clients: reading the description of S3 takes longer than most tests."""
    return boto3.session.Session()


@contextmanager
def running_server(data: Path) -> Iterator[str]:
    """A server that keeps its objects below `data`; its endpoint URL."""
    if not PROGRAM.is_file():
        absent("the S3 server of the tests is not installed (make s3-server)")
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    env |= {"S3_PERSIST": "1", "S3_DATA_DIR": str(data), "GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1"}
    data.mkdir(parents=True, exist_ok=True)
    with (data.parent / f"{data.name}.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM], env=env, cwd=data, stdout=log, stderr=log, start_new_session=True)
        try:
            endpoint = f"http://127.0.0.1:{port}"
            wait_for(f"{endpoint}/_ministack/health", 60)
            yield endpoint
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def fresh_bucket(endpoint: str) -> S3:
    """A new bucket on a running server."""
    client = client_of(endpoint)
    name = f"test-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return S3(endpoint, name, client)
