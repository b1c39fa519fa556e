"""Pretrained networks: found in a local folder or on the hub at a pinned commit, read from safetensors.

What belongs here: what is refused before anything is loaded, and strict reading. What does not: the
network's use. Code that comes with weights is never run: a description that asks for it is refused.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import RewardConfig
from compalign_dagster.reward.manifest import asks_for_code

TOKENIZER, HEAD = "tokenizer", "head.safetensors"  # parts of a model folder, beside the network's own
PREPROCESSING = "preprocessor_config.json"
_DESCRIPTIONS = ("config.json", "tokenizer_config.json", PREPROCESSING, "processor_config.json")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")

disable_progress_bar()  # of reading and writing weights; a log line says as much


@dataclass(frozen=True)
class Source:
    """A folder, or a hub id with its commit."""

    name: str
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keywords for `from_pretrained`."""
        return {"revision": self.revision} if self.revision else {"local_files_only": True}


def pinned(config: RewardConfig) -> Source:
    """What `config` says to load. `InputError` where that is nothing, or a hub id without a commit."""
    if not config.model:
        raise InputError(
            "reward setting 'model'",
            expected="a local folder or a hub id with a revision",
            found="nothing",
            remedy="Set it, or use the backbone blip-tiny, which trains from scratch.",
        )
    if Path(config.model).is_dir():
        return Source(config.model)
    if not _COMMIT.fullmatch(config.revision or ""):
        raise InputError(
            f"hub model {config.model}",
            expected="a pinned revision (a commit, 40 hex digits)",
            found=f"{config.revision!r}, and no such folder",
            remedy="Set revision, so that the same weights are read every time.",
        )
    return Source(config.model, config.revision)


def descriptions(source: Source) -> dict[str, dict[str, Any]]:
    """The JSON descriptions of a source by file name, of which it has `config.json` at least.

    Nothing else of the source has been read by then. Raises `InputError` for one that asks to run code of
    its own, `OSError` or `ValueError` for one that cannot be read.
    """
    found = {}
    for name in _DESCRIPTIONS:
        needed = name == _DESCRIPTIONS[0]  # a hub that does not answer looks like a missing file elsewhere
        path = cached_file(source.name, name, _raise_exceptions_for_missing_entries=needed, **source.options)
        if path is None:
            continue
        try:
            found[name] = json.loads(Path(path).read_bytes())
        except RecursionError as error:
            raise ValueError(f"{name} is nested too deeply") from error
        if not isinstance(found[name], dict):
            raise ValueError(f"{name} is no JSON object")
        asked = sorted(key for key, value in _entries(found[name]) if asks_for_code(key, value))
        if asked:
            raise InputError(
                f"pretrained model {source.name}",
                expected="weights and their description, without code",
                found=f"{asked[0]!r} in {name}",
                remedy="Use a model that transformers itself implements.",
            )
    return found


def read_network(cls: Any, source: Source) -> Any:
    """A network of class `cls` in float32 from safetensors. `ValueError` where a weight is missing.

    Weights that the class does not have are left alone: checkpoints carry heads of other tasks.
    """
    network, report = _read(cls, source)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{len(missing)} weights of {cls.__name__} missing, first {missing[0]}")
    return network


def read_tokenizer(cls: Any, source: Source, network: Any) -> Any:
    """A tokenizer of class `cls` that fits the network. `ValueError` where its vocabulary is missing or too large.

    Without its files transformers makes an empty tokenizer, to which every caption is the same.
    """
    options = {"_raise_exceptions_for_missing_entries": False, **source.options}
    if not any(cached_file(source.name, name, **options) for name in _VOCABULARIES):
        raise ValueError(f"no tokenizer: none of {', '.join(_VOCABULARIES)}")
    tokenizer = cls.from_pretrained(source.name, **source.options)
    known, most = len(tokenizer), network.config.text_config.vocab_size
    if known > most:
        raise ValueError(f"a tokenizer of {known} pieces for a network that knows {most}")
    if tokenizer.pad_token is None:
        raise ValueError("a tokenizer without a padding token")
    return tokenizer


def reread_network(cls: Any, folder: Path) -> Any:
    """What `save_parts` wrote of a network. `ValueError` unless its weights are exactly those of `cls`."""
    network, report = _read(cls, Source(str(folder)), ignore_mismatched_sizes=True)
    misshapen = {name for name, *_ in report["mismatched_keys"]}
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"], *misshapen})
    if wrong:
        raise ValueError(f"the weights do not fit {cls.__name__}: {', '.join(wrong[:3])}")
    return network


def save_parts(model: nn.Module, folder: Path, network: str, tokenizer: Any, preprocessing: dict[str, Any]) -> None:
    """Write the submodule `network` into a folder of that name, then all else that makes up a model."""
    saved = getattr(model, network)
    _forget_use(saved.config, tokenizer)
    saved.save_pretrained(folder / network, safe_serialization=True)
    tokenizer.save_pretrained(folder / TOKENIZER)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{network}.")}
    save_file({name: value.contiguous().cpu() for name, value in own.items()}, folder / HEAD)
    (folder / PREPROCESSING).write_text(json.dumps(preprocessing, indent=2, sort_keys=True) + "\n")


def _forget_use(config: Any, tokenizer: Any) -> None:
    """Drop what is left of the last call, and of being built or read: neither makes another model."""
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.float32
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    for name in ("is_local", "local_files_only", "revision"):
        tokenizer.init_kwargs.pop(name, None)


def load_head(model: nn.Module, folder: Path, network: str) -> None:
    """Read into a model what `save_parts` wrote beside the network. `ValueError` unless it fits exactly."""
    found = load_file(folder / HEAD)
    expected = {name for name in model.state_dict() if not name.startswith(f"{network}.")}
    wrong = sorted(expected ^ found.keys())
    if wrong:
        raise ValueError(f"{HEAD} does not fit: {', '.join(wrong[:3])}")
    model.load_state_dict(found, strict=False)


def unusable(source: Source, expected: str, error: Exception) -> InputError:
    """What to raise where a source cannot be read whole."""
    return InputError(
        f"pretrained model {source.name}",
        expected=expected,
        found=" ".join(str(error).split())[:300],
        remedy="Give a folder made by save_pretrained, or a hub id that can be reached.",
    )


def freeze_lower(towers: Sequence[nn.Module], share: float) -> None:
    """Rest the embeddings and the lower `share` of each tower's layers; 0 rests nothing."""
    for tower in towers if share else ():
        encoder: Any = tower.encoder
        layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
        for module in (tower.embeddings, *layers[: int(len(layers) * share)]):
            module.requires_grad_(False)


def split_head(model: Any, head_lr: float) -> list[dict[str, Any]]:
    """What trains in a model with a `head`, as torch optimiser groups: the head has its own rate unless that is 0."""
    trained = [value for value in model.parameters() if value.requires_grad]
    if not head_lr:
        return [{"params": trained}]
    head = {id(value) for value in model.head.parameters()}
    rest = [value for value in trained if id(value) not in head]
    return [*([{"params": rest}] if rest else []), {"params": list(model.head.parameters()), "lr": head_lr}]


def _read(cls: Any, source: Source, **more: Any) -> tuple[Any, dict[str, Any]]:
    return cls.from_pretrained(
        source.name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **source.options, **more
    )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys of nested JSON with their values."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item.items()
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
