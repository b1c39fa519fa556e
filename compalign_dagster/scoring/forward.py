"""The forward pass: a model on its device in the chosen precision, in batches that fit its memory.

What belongs here: precision, copies to the device, halving a batch that does not fit. What does not: reading and
decoding (`feed.py`), which pairs make a batch (`engine.py`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.errors import CompalignError
from compalign_dagster.reward.model import Outputs, RewardModel
from compalign_dagster.scoring.config import ScoringConfig, batch_images
from compalign_dagster.scoring.tables import FIGURES

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NO_MEMORY = ("not enough memory", "DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")

log = logging.getLogger(__name__)


class Forward:
    """Scores batches. `images` and `captions` are computed at once at most; both are halved when memory runs out."""

    def __init__(self, model: RewardModel, config: ScoringConfig, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.device = device
        self.images, self.captions = config.batch_images or batch_images(device.type), config.batch_captions
        self.halved = 0
        self._type = _TYPES.get(config.precision)
        self._encode: Callable[[Tensor], Tensor] = self.model.encode_images
        if config.compile:
            self._encode = torch.compile(self.model.encode_images)

    @property
    def device_name(self) -> str:
        """As torch says it, such as `NVIDIA H100 80GB HBM3` or `cpu`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def score(self, prepared: Sequence[Tensor], captions: Sequence[Sequence[str]], what: str) -> Tensor:
        """FIGURES of each image's captions, float32 [captions, len(FIGURES)], on the device.

        A part that does not fit into memory is tried again in halves, and what comes later too. `CompalignError`
        about `what` where not even one image and one caption fit.
        """
        found, at = [], 0
        while at < len(prepared):
            part = slice(at, at + self.images)
            scored = self._tried(prepared[part], captions[part], what)
            if scored is not None:
                found.append(scored)
                at = part.stop
        return torch.cat(found)

    def _tried(self, prepared: Sequence[Tensor], captions: Sequence[Sequence[str]], what: str) -> Tensor | None:
        """Their figures, or None where memory ran out: smaller batches are in force then."""
        try:
            with self.computing():
                return self._score(prepared, captions)
        except Exception as error:
            if not out_of_memory(error):
                raise
            why = str(error)
        # Outside of the handler, whose traceback holds on to the tensors.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._halve(len(prepared), sum(map(len, captions)), what, why)
        return None

    def _halve(self, images: int, captions: int, what: str, why: str) -> None:
        images, captions = min(self.images, images), min(self.captions, captions)
        if images == captions == 1:
            raise CompalignError(
                f"scoring of {what} on {self.device_name}",
                expected="memory for one image and one caption",
                found=why.splitlines()[0][:200] if why else "too little",
                remedy="Free memory on the device (what else runs there?), choose a lower precision, a smaller image "
                "size or model, or a larger device.",
            )
        self.images, self.captions = max(1, images // 2), max(1, captions // 2)
        self.halved += 1
        log.warning(
            "%s: memory ran out on %s; going on with %d images and %d captions at once",
            what,
            self.device_name,
            self.images,
            self.captions,
        )

    def _score(self, prepared: Sequence[Tensor], captions: Sequence[Sequence[str]]) -> Tensor:
        states = self._encode(self._moved(torch.stack(list(prepared))))
        texts = [text for own in captions for text in own]
        owner = torch.tensor([at for at, own in enumerate(captions) for _ in own])
        found = []
        for start in range(0, len(texts), self.captions):
            part = slice(start, start + self.captions)
            first, last = int(owner[part][0]), int(owner[part][-1])
            outputs = self.model(states[first : last + 1], texts[part], owner[part] - first)
            found.append(figures(self.model, outputs))
        return torch.cat(found)

    def _moved(self, batch: Tensor) -> Tensor:
        """On the device; through pinned memory to a GPU, so that the copy runs beside the computation."""
        if self.device.type != "cuda":
            return batch
        return batch.pin_memory().to(self.device, non_blocking=True)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """No gradients, and the chosen precision; who holds it over many batches has weights rounded only once."""
        with torch.inference_mode(), torch.autocast(self.device.type, self._type, enabled=self._type is not None):
            yield


def figures(model: RewardModel, outputs: Outputs) -> Tensor:
    """What a model says of N pairs, float32 [N, len(FIGURES)]; what it lacks is NaN."""
    criteria = dict(zip(CRITERIA, outputs.criteria.T, strict=True))
    found = criteria | {"human_fit": model.human_fit(outputs.reward)}
    return torch.stack([(found[name] if name in found else getattr(outputs, name)).float() for name in FIGURES], dim=1)


def out_of_memory(error: BaseException) -> bool:
    """Whether a forward pass failed for want of memory; torch says so in several ways."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
