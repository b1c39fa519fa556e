"""Fixtures that every kind of test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from compalign_dagster.settings import PREFIX, Settings, load
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3, fresh_bucket, running_server

ROOT = Path(__file__).resolve().parent.parent
DATAPACK = ROOT.parent / "shared" / "datapack"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The sample profile over an empty folder, with training cut down to seconds."""
    return load(
        home=tmp_path,
        settle_seconds=0,
        pretrain_steps=4,
        train_steps=6,
        batch_images=8,
        evaluation_steps=5,
        min_cross_image_auc=0.5,
    )


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What a test prints is its result: shown even when it passes."""
    yield
    found = capsys.readouterr().out.strip()
    with capsys.disabled():
        print(f"\n{found}" if found else "")


@pytest.fixture(scope="session")
def datapack() -> Path:
    if not DATAPACK.is_dir():
        pytest.skip("no data pack beside the repository (../shared/datapack)")
    return DATAPACK


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on loopback, one for the whole session."""
    with running_server(tmp_path_factory.mktemp("s3") / "data") as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str) -> S3:
    """A fresh bucket on it; for the test of a whole process, `s3.env()` has the variables."""
    return fresh_bucket(s3_endpoint)


@pytest.fixture
def faults(s3_endpoint: str) -> Iterator[FaultProxy]:
    """A proxy before the server that misbehaves on demand."""
    with FaultProxy(s3_endpoint) as proxy:
        yield proxy
