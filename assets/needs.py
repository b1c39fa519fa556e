"""What the heavy steps need of a machine, rendered for Dagster where the assets are declared."""

from compalign_dagster.compute import Needs
from compalign_dagster.settings import load

_GPUS = int(load().device == "cuda")  # asked for by name, so that a step never lands on a machine without one

TRAINING = Needs(gpus=_GPUS, memory_gib=4.0, pool="training")
SCORING = Needs(gpus=_GPUS, memory_gib=4.0, pool="scoring")
EVALUATION = Needs(gpus=_GPUS, memory_gib=4.0, pool="training")
