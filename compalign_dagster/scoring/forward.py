"""The forward pass: a model on its device in the chosen precision, in batches that fit its memory.

What belongs here: precision, copies to the device, halving a batch that does not fit. What does not: reading and
decoding (`feed.py`), which pairs make a batch (`engine.py`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compalign_dagster.annotation.tables import CRITERIA
from compalign_dagster.errors import CompalignError
from compalign_dagster.reward.model import Outputs, RewardModel
from compalign_dagster.scoring.config import ScoringConfig, batch_images, batch_tokens
from compalign_dagster.scoring.tables import FIGURES

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Captions = Sequence[str] | Tensor  # as texts, or as states [N, D]

_NO_MEMORY = ("not enough memory", "DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")

log = logging.getLogger(__name__)


class Forward:
    """Scores and embeds batches.

    `images` and `captions` are computed at once at most; both are halved when memory runs out.
    """

    def __init__(self, model: RewardModel, config: ScoringConfig, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.device = device
        self.images, self.captions = config.batch_images or batch_images(device.type), config.batch_captions
        self.tokens = batch_tokens(device.type)
        self.halved = 0
        self._type = _TYPES.get(config.precision)
        self._encode: Callable[[Tensor], Tensor] = self.model.encode_images
        if config.compile:
            self._encode = torch.compile(self.model.encode_images)

    @property
    def device_name(self) -> str:
        """As torch says it, such as `NVIDIA H100 80GB HBM3` or `cpu`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def read(
        self, captions: Sequence[str], counts: Sequence[int], what: str, beat: Callable[[], None] = lambda: None
    ) -> Captions:
        """A shard's captions as `score` takes them: encoded, in their order, where the model reads them apart.

        Those of about one length are encoded together, so that little is computed on padding; `counts` are their
        tokens. As with `score`, what does not fit into memory is tried again in halves. `beat` is called after each
        batch: of a large shard they take minutes, in which no pair is done.
        """
        if not (self.model.captions_apart and captions):
            return captions
        widths = np.clip(counts, self.model.least_tokens, self.model.config.max_caption_tokens)
        order, states, at = np.argsort(widths, kind="stable"), [], 0
        while at < len(order):
            rows = order[at : at + fitting(widths[order[at:]], self.tokens)]
            encoded, why = self._in_memory(self.model.encode_captions, [captions[row] for row in rows])
            if encoded is not None:
                states.append(encoded)
                at += len(rows)
                beat()
            elif len(rows) == 1:
                raise self._no_room(what, why)
            else:
                self.tokens = max(1, min(self.tokens, int(widths[rows].max()) * len(rows)) // 2)
                self._ran_out(what, f"{self.tokens} tokens of captions")
        return torch.cat(states).index_select(0, torch.from_numpy(order.argsort()).to(self.device))

    def score(
        self, prepared: Sequence[Tensor], captions: Captions, owned: Sequence[Sequence[int]], what: str
    ) -> Tensor:
        """FIGURES of each image's captions, float32 [captions of them, len(FIGURES)], on the device.

        `captions` are the shard's, as `read` gives them; `owned` are the rows of each image's own.
        A part that does not fit into memory is tried again in halves, and what comes later too. `CompalignError`
        about `what` where not even one image and one caption fit.
        """
        found, at = [], 0
        while at < len(prepared):
            part = slice(at, at + self.images)
            scored = self._tried(prepared[part], captions, owned[part], what)
            if scored is not None:
                found.append(scored)
                at = part.stop
        return torch.cat(found)

    def embed(self, prepared: Sequence[Tensor], what: str) -> Tensor:
        """A unit vector for each image, float32 [B, D], on the device: the mean of its states.

        As with `score`, what does not fit into memory is tried again in halves.
        """
        found, at = [], 0
        while at < len(prepared):
            part = prepared[at : at + self.images]
            vectors, why = self._in_memory(self._embed, part)
            if vectors is None:
                self._halve(len(part), 1, what, why)
            else:
                found.append(vectors)
                at += len(part)
        return torch.cat(found)

    def _tried(
        self, prepared: Sequence[Tensor], captions: Captions, owned: Sequence[Sequence[int]], what: str
    ) -> Tensor | None:
        """Their figures, or None where memory ran out: smaller batches are in force then."""
        scored, why = self._in_memory(self._score, prepared, captions, owned)
        if scored is None:
            self._halve(len(prepared), sum(map(len, owned)), what, why)
        return scored

    def _in_memory(self, compute: Callable[..., Tensor], *arguments: Any) -> tuple[Tensor | None, str]:
        """What `compute` gives, or None and why where memory ran out."""
        try:
            with self.computing():
                return compute(*arguments), ""
        except Exception as error:
            if not out_of_memory(error):
                raise
            why = str(error)
        # Outside of the handler, whose traceback holds on to the tensors.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None, why

    def _halve(self, images: int, captions: int, what: str, why: str) -> None:
        images, captions = min(self.images, images), min(self.captions, captions)
        if images == captions == 1:
            raise self._no_room(what, why)
        self.images, self.captions = max(1, images // 2), max(1, captions // 2)
        self._ran_out(what, f"{self.images} images and {self.captions} captions")

    def _ran_out(self, what: str, smaller: str) -> None:
        self.halved += 1
        log.warning("%s: memory ran out on %s; going on with %s at once", what, self.device_name, smaller)

    def _no_room(self, what: str, why: str) -> CompalignError:
        return CompalignError(
            f"scoring of {what} on {self.device_name}",
            expected="memory for one image and one caption",
            found=why.splitlines()[0][:200] if why else "too little",
            remedy="Free memory on the device (what else runs there?), choose a lower precision, a smaller image "
            "size or model, or a larger device.",
        )

    def _score(self, prepared: Sequence[Tensor], captions: Captions, owned: Sequence[Sequence[int]]) -> Tensor:
        states = self._encode(self._moved(torch.stack(list(prepared))))
        texts = _taken(captions, [row for rows in owned for row in rows])
        owner = torch.tensor([at for at, rows in enumerate(owned) for _ in rows])
        found = []
        for start in range(0, len(texts), self.captions):
            part = slice(start, start + self.captions)
            first, last = int(owner[part][0]), int(owner[part][-1])
            outputs = self.model(states[first : last + 1], texts[part], owner[part] - first)
            found.append(figures(self.model, outputs))
        return torch.cat(found)

    def _embed(self, prepared: Sequence[Tensor]) -> Tensor:
        states = self._encode(self._moved(torch.stack(list(prepared))))
        return torch.nn.functional.normalize(states.float().mean(dim=1), dim=-1)

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


def _taken(captions: Captions, rows: list[int]) -> Captions:
    """Those of a shard's captions, in this order."""
    if isinstance(captions, Tensor):
        return captions.index_select(0, torch.tensor(rows).to(captions.device))
    return [captions[row] for row in rows]


def fitting(widths: np.ndarray, tokens: int) -> int:
    """How many of the first captions fit into so many tokens, at least one.

    `widths`, tokens, int [N], rise: the last of those taken is what all of them are padded to.
    """
    return max(1, int(np.searchsorted(widths * np.arange(1, len(widths) + 1), tokens, side="right")))


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
