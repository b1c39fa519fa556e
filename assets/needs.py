"""What the heavy steps need of a machine, rendered for Dagster where the assets are declared."""

from compalign_dagster.compute import Needs
from compalign_dagster.settings import Settings, load

_SETTINGS = load()
_GPUS = int(_SETTINGS.device == "cuda")  # asked for by name, so that a step never lands on a machine without one


def scoring(settings: Settings) -> Needs:
    """Of the step that scores: its workers' together where they are processes of its machine, else next to nothing."""
    if settings.engine == "ray" and settings.ray_address:
        return Needs(pool="scoring")
    workers = 1 if settings.engine == "here" else settings.score_workers or 1
    gpus = int(settings.device == "cuda")
    return Needs(gpus=gpus * workers, memory_gib=settings.worker_memory_gib * workers, pool="scoring")


TRAINING = Needs(gpus=_GPUS, memory_gib=4.0, pool="training")
SCORING = scoring(_SETTINGS)
EVALUATION = Needs(gpus=_GPUS, memory_gib=4.0, pool="training")
