"""Scores of the judged captions of a split, by a reward model and by the baselines that come with it.

What belongs here: running a model over judged images. What does not: what the scores say (`agreement.py`),
and captions nobody judged (`held_out.py`).
"""

import numpy as np

from compalign_dagster.reward.data import TrainingData, judged_images
from compalign_dagster.reward.loading import loader_for
from compalign_dagster.reward.metrics import SCORES, score_rows
from compalign_dagster.reward.model import RewardModel

_CACHE_MIB = 256


def judged_scores(
    model: RewardModel, data: TrainingData, split: str = "test"
) -> tuple[dict[str, dict[tuple[str, str], float]], int]:
    """Reward and baselines by (image_id, caption_id), and how many images did not decode.

    A baseline the model lacks is left out.
    """
    loader = loader_for(model, data.shards, _CACHE_MIB)
    found = judged_images(data, split)
    usable = loader.usable(image.place for image in found)
    images = [image for image in found if image.place in usable]
    rows = [
        (at, image.image_id, caption_id, text)
        for at, image in enumerate(images)
        for caption_id, text in zip(image.caption_ids, image.captions, strict=True)
    ]
    index = np.array([at for at, *_ in rows], np.int64)
    scores = score_rows(model, loader, images, index, [text for *_, text in rows])
    places = [(image_id, caption_id) for _, image_id, caption_id, _ in rows]
    named = {
        name: dict(zip(places, scores[name].tolist(), strict=True))
        for name in SCORES
        if len(rows) and np.isfinite(scores[name]).all()
    }
    return named, len(found) - len(images)
