"""How to score: the settings of the engine, and which precisions a device can do.

What does not belong here: what a precision does to the forward pass (`forward.py`).
"""

from dataclasses import dataclass

from compalign_dagster.errors import InputError

PRECISIONS = ("fp32", "bf16", "fp16")  # int8 moves rank correlations below what `tolerance.py` allows
_FEWEST_DECODERS, _MOST_DECODERS = 2, 8  # each may hold an image as large as the budget


@dataclass(frozen=True)
class ScoringConfig:
    """How to score. Only `precision` and `image_pixels` change bytes on purpose; the rest is recorded."""

    precision: str = "fp32"
    device: str = "auto"  # cpu, cuda, cuda:1, ...
    batch_images: int | None = None  # encoded at once, at most; None for what suits the device
    batch_captions: int = 512  # scored at once, at most
    image_pixels: int = 89_478_485  # refuse to decode more
    threads: int | None = None  # of torch; None leaves them as they are
    decoders: int | None = None  # threads that decode images; None for what suits the device
    queue_images: int = 64  # images that are decoded ahead of the model, at most; at least one batch in any case
    compile: bool = False  # compile the image tower


def batch_images(device: str) -> int:
    """Images that suit a device (`cpu`, `cuda:1`): on a CPU, states of more leave its caches, which costs time."""
    return 8 if device == "cpu" else 64


def batch_tokens(device: str) -> int:
    """Tokens of captions that a device encodes at once where they are read apart from images; as `batch_images`."""
    return 512 if device == "cpu" else 16_384


def decoders(device: str, cores: int) -> int:
    """Threads that decode beside a device: the cores of a CPU compute, those beside a GPU have nothing else to do."""
    return _FEWEST_DECODERS if device == "cpu" else max(_FEWEST_DECODERS, min(cores, _MOST_DECODERS))


def check_precision(precision: str, device: str) -> None:
    """`InputError` for a precision that is unknown or that a device (`cpu`, `cuda`, `cuda:1`) cannot do."""
    on_cpu = device == "cpu"
    if precision not in PRECISIONS:
        raise _refused(precision, f"one of {', '.join(PRECISIONS)}", "Choose one; fp32 is the reference.")
    if precision == "fp16" and on_cpu:
        raise _refused(precision, "fp32 or bf16 on a CPU", "Use bf16, which a CPU computes well, or a GPU.")
    if precision == "bf16" and not on_cpu:
        import torch

        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise _refused(precision, f"fp32 or fp16 on {torch.cuda.get_device_name(device)}", "Use fp16.")


def _refused(precision: str, expected: str, remedy: str) -> InputError:
    return InputError("setting precision", expected=expected, found=repr(precision), remedy=remedy)
