"""A reward model as an immutable folder: an exact version, loaded strictly or not at all.

The backbone writes weights (safetensors), tokenizer and preprocessing. `metrics.json`, `record.json` and
the model card `README.md` describe the training; `model.json` is written last and seals the rest
(`manifest.py`). Nothing in a model folder is ever unpickled or executed.
"""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from compalign_dagster.errors import CompalignError, InputError
from compalign_dagster.reward.card import model_card
from compalign_dagster.reward.config import CODE_VERSION, reward_config
from compalign_dagster.reward.manifest import (
    CARD,
    MANIFEST,
    METRICS,
    RECORD,
    Manifest,
    json_bytes,
    list_files,
    verified,
)
from compalign_dagster.reward.model import RewardModel, backbone

_LIBRARIES = ("compalign-dagster", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")


def save_model(
    model: RewardModel,
    folder: Path,
    *,
    metrics: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
) -> Path:
    """Write a model into a new or empty folder and return it. The manifest comes last: without it there is no model."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"model folder {folder}",
            expected="a new or empty folder",
            found="files",
            remedy="Choose another folder.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    for name, value in ((METRICS, metrics), (RECORD, record)):
        if value is not None:
            (folder / name).write_bytes(json_bytes(value))
    about = _about(model, record or {})
    manifest = Manifest(model.name, model.config.as_dict(), list_files(folder), about)
    (folder / CARD).write_text(model_card(manifest, metrics or {}, record or {}), encoding="utf-8")
    manifest = Manifest(model.name, model.config.as_dict(), list_files(folder), about)
    (folder / MANIFEST).write_bytes(manifest.as_bytes())
    return folder


def load_model(folder: Path, *, device: str = "cpu") -> RewardModel:
    """The model in `folder`, in evaluation mode.

    `InputError` unless every file is the one that was saved (see `manifest.verified`) and the weights
    are exactly those of the network: no tensor missing, unexpected or of another shape.
    """
    manifest = verified(folder)
    cls = backbone(manifest.backbone)
    try:
        model = cls.load(folder, reward_config(manifest.config))
    except CompalignError:
        raise
    except Exception as error:  # libraries raise what they like at files that do not fit
        raise InputError(
            f"model folder {folder}",
            expected=f"the files of a {cls.name} reward model",
            found=" ".join(str(error).split())[:300] or type(error).__name__,
            remedy="Restore the folder or train again.",
        ) from error
    return model.to(device).eval()


def model_version(folder: Path) -> str:
    """64 hex digits that change exactly when a score could. Verifies the folder first."""
    return verified(folder).model_version


def _about(model: RewardModel, record: dict[str, Any]) -> dict[str, Any]:
    """Where the model came from, for people and auditors."""
    return {
        "code_versions": {"training": CODE_VERSION, **(record.get("code_versions") or {})},
        "seeds": record.get("seeds") or {"training": model.config.seed},
        "training_data": record.get("data_version"),
        "pretrained": model.provenance(),
        "libraries": {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
