"""A reward model as an immutable folder.

`reward.json` names the backbone and its configuration; the backbone writes the rest. `metrics.json`
and `record.json` describe the training and are no part of the model's version. Weights are
safetensors only: nothing in a model folder is ever unpickled.
"""

import json
from pathlib import Path
from typing import Any

from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.model import RewardModel, backbone
from compalign_dagster.versions import digest_file, digest_json

FORMAT = 1
METRICS, RECORD, SETTINGS = "metrics.json", "record.json", "reward.json"


def save_model(
    model: RewardModel,
    folder: Path,
    *,
    metrics: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
) -> Path:
    """Write a model into a new or empty folder and return it."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"model folder {folder}",
            expected="a new or empty folder",
            found="files",
            remedy="Choose another folder.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    _write(folder / SETTINGS, {"format": FORMAT, "backbone": model.name, "config": model.config.as_dict()})
    if metrics is not None:
        _write(folder / METRICS, metrics)
    if record is not None:
        _write(folder / RECORD, record)
    return folder


def load_model(folder: Path, *, device: str = "cpu") -> RewardModel:
    """The model in `folder`, in evaluation mode. `InputError` when it is not one this release can read."""
    settings = _settings(folder)
    cls = backbone(settings.get("backbone", ""))
    config = reward_config(settings.get("config"))
    try:
        model = cls.load(folder, config)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            f"model folder {folder}",
            expected=f"the files of a {cls.name} reward model",
            found=" ".join(str(error).split())[:300] or type(error).__name__,
            remedy="Restore the folder or train again.",
        ) from error
    return model.to(device).eval()


def model_version(folder: Path) -> str:
    """64 hex digits that change exactly when a score could: a digest over the model's own files."""
    _settings(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_json(
        {
            path.relative_to(folder).as_posix(): digest_file(path)
            for path in files
            if path.name not in (METRICS, RECORD) and not path.name.startswith(".")
        }
    )


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        raise InputError(
            f"model folder {folder}",
            expected=f"a folder with {SETTINGS}",
            found="no such file" if folder.is_dir() else "no such folder",
            remedy="Give the folder that training wrote.",
        )
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        settings, why = None, str(error)
    else:
        why = f"format {settings.get('format')!r}" if isinstance(settings, dict) else type(settings).__name__
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise InputError(
            f"file {path}",
            expected=f"JSON of format {FORMAT}",
            found=why,
            remedy="Use the release that wrote it.",
        )
    return settings


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
