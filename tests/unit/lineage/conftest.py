import shutil
from pathlib import Path

import pytest

from tests.support.small_version import SmallStore, small_store


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> SmallStore:
    """Two batches, two models, three versions. Read it, never write it."""
    small = small_store(tmp_path_factory.mktemp("made") / "home", pairs=12)
    small.filter(keep_fraction="0.3")
    small.filter(keep_fraction="0.5")
    return small


@pytest.fixture
def small(made, tmp_path) -> SmallStore:
    """A copy of `made` that a test may alter; its manifests name the landing folder of the original."""
    home = shutil.copytree(made.home, tmp_path / "home")
    return SmallStore(Path(home), made.shards, made.pairs, made.seed)
