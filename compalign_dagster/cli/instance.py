"""The local Dagster instance of a profile: its folder, its configuration, its environment."""

import os
import shutil
from pathlib import Path

from compalign_dagster.settings import Settings

_CONFIGURATION = Path("deploy", "local", "dagster.yaml")


def prepare(settings: Settings) -> Path:
    """Make the instance folder, name it in `DAGSTER_HOME`, and return it.

    A checkout's `deploy/local/dagster.yaml` is its configuration. Elsewhere (an installed wheel) an
    existing `dagster.yaml` in the folder is kept and Dagster's defaults hold without one.
    """
    home = settings.dagster_home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    source = workspace().parent / _CONFIGURATION
    if source.is_file():
        shutil.copyfile(source, home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["COMPALIGN_HOME"] = str(settings.home.absolute())  # for processes that start in another folder
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    return home


def workspace() -> Path:
    """The checkout's `workspace.yaml`."""
    return Path(__file__).resolve().parents[2] / "workspace.yaml"
