import pytest

from compalign_dagster.settings import load
from tests.support.pipeline import Pipeline, small_pipeline


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Pipeline:
    """A small sample, landed and learned from; the gate is lowered, for so little training proves nothing."""
    settings = load(
        home=tmp_path_factory.mktemp("home"),
        settle_seconds=0,
        pretrain_steps=4,
        train_steps=6,
        batch_images=8,
        evaluation_steps=4,
        min_cross_image_auc=0.5,
    )
    pipeline = small_pipeline(settings)
    return pipeline
