"""The score that everybody would use first: a contrastive cosine, trained here on the same frozen features.

A linear projection each for images and captions, as CLIP has (Radford et al. 2021), InfoNCE within batches of the
crawl's pairs, one caption of an image at a time. No human label. CLIPScore is 2.5 times this cosine where it is
positive. The recipe is the best one found on this little crawl: much dropout, few passes, no hidden layer.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compalign_dagster.crawl.shards import MemberReader
from compalign_dagster.evaluation.held_out import ON_BLANK, ON_PHOTO, HeldOut
from compalign_dagster.evaluation.inputs import frozen_encoders
from compalign_dagster.images import decode
from compalign_dagster.reward.data import Place, TrainingData

_PASSES = 10  # over the images of the crawl
_BATCH = 512
_LR = 1e-3
_WIDTH = 256
_DROPOUT = 0.5
_READ_AT_ONCE = 64


def contrastive_cosine(data: TrainingData, held: HeldOut, *, seed: int = 7) -> np.ndarray:
    """The cosine of every row of `held`, float64 [N]; NaN for pictures of text.

    Needs the frozen encoders of the offline backbone; features that were computed before are not again.
    """
    torch.manual_seed(seed)
    encoders = frozen_encoders()
    assert encoders.captions is not None
    crawl = data.crawl.select(["shard", "image_offset", "image_length", "caption"]).to_pylist()
    places = [(row["shard"], row["image_offset"], row["image_length"]) for row in crawl]
    images, image_of = _features(data, sorted(set(places)))
    texts = torch.from_numpy(encoders.captions([row["caption"] for row in crawl]))
    own = np.array([image_of[place] for place in places])
    net = _Heads(images.shape[1], texts.shape[1])
    _train(net, images, texts, own, np.random.default_rng(seed))

    rows = data.images.select(["image_id", "shard", "image_offset", "image_length"]).to_pylist()
    judged = {row["image_id"]: (row["shard"], row["image_offset"], row["image_length"]) for row in rows}
    pictures, at = _features(data, [judged[image] for image in held.images])
    with torch.inference_mode():
        image = net.image(pictures)[[at[judged[held.images[row.image]]] for row in held.rows]]
        caption = net.caption(torch.from_numpy(encoders.captions([row.text for row in held.rows])))
        cosine = (F.normalize(image, dim=-1) * F.normalize(caption, dim=-1)).sum(-1).double().numpy()
    written = np.array([row.kind in (ON_BLANK, ON_PHOTO) for row in held.rows])
    return np.where(written, np.nan, cosine)


class _Heads(nn.Module):
    def __init__(self, image: int, text: int) -> None:
        super().__init__()
        self.image, self.caption = _head(image), _head(text)
        self.scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        """InfoNCE of N pairs, both directions."""
        image, caption = (F.normalize(vectors, dim=-1) for vectors in (self.image(images), self.caption(captions)))
        logits = self.scale.clamp(max=np.log(100)).exp() * image @ caption.T
        right = torch.arange(len(images))
        return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def _head(width: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Dropout(_DROPOUT), nn.Linear(width, _WIDTH))


def _train(net: _Heads, images: Tensor, texts: Tensor, own: np.ndarray, rng: np.random.Generator) -> None:
    captions_of = [np.flatnonzero(own == image) for image in range(len(images))]
    batch = min(_BATCH, len(images))
    steps = _PASSES * (len(images) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=_LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LR, total_steps=steps)
    net.train()
    for _ in range(_PASSES):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            group = order[start : start + batch]
            chosen = [rng.choice(captions_of[image]) for image in group]
            loss = net(images[group], texts[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()


def _features(data: TrainingData, places: Sequence[Place]) -> tuple[Tensor, dict[Place, int]]:
    """Frozen features [N, D] of the images at these places, and the row of each."""
    encoders = frozen_encoders()
    found = []
    with MemberReader() as members:
        for start in range(0, len(places), _READ_AT_ONCE):
            group = places[start : start + _READ_AT_ONCE]
            found.append(encoders.images([decode(members.read(data.shards[at[0]], *at[1:])) for at in group]))
    return torch.from_numpy(np.concatenate(found)), {place: at for at, place in enumerate(places)}
