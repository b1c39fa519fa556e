"""Fixtures that every kind of test may use."""

import os
from pathlib import Path

import pytest

from compalign_dagster.settings import PREFIX, Settings, load

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


@pytest.fixture(scope="session")
def datapack() -> Path:
    if not DATAPACK.is_dir():
        pytest.skip("no data pack beside the repository (../shared/datapack)")
    return DATAPACK
