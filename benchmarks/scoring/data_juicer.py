"""Data-Juicer's `image_text_matching_filter` on the same files and weights, in its own environment.

    python -m benchmarks.scoring.data_juicer FOLDER PROCESSES

Its own defaults but for what makes it comparable: no resource monitor, so many processes, nothing is dropped by
score. A row of its dataset is a pair, the only way in which it decides on every caption by itself. Its model is
loaded before the clock runs.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.scoring.inputs import pairs
from benchmarks.scoring.serving import serve


def main(folder: Path, processes: int) -> None:
    """Serve the sets `one` and `five`."""
    import torch
    from data_juicer.core.data import NestedDataset  # type: ignore[import-not-found]
    from data_juicer.ops.filter.image_text_matching_filter import ImageTextMatchingFilter  # type: ignore[import-not-found]
    from data_juicer.utils.constant import Fields, StatsKeys  # type: ignore[import-not-found]
    from data_juicer.utils.mm_utils import SpecialTokens  # type: ignore[import-not-found]
    from data_juicer.utils.model_utils import get_model  # type: ignore[import-not-found]
    from datasets import disable_caching, disable_progress_bars  # type: ignore[import-not-found]

    disable_caching()
    disable_progress_bars()
    torch.set_num_threads(1)
    score = StatsKeys.image_text_matching_score
    made = ImageTextMatchingFilter(
        hf_blip=str(folder / "blip"), min_score=0.0, num_proc=processes, auto_op_parallelism=False
    )

    def work(name: str) -> Callable[[], Callable[[], dict[str, Any]]]:
        rows = [
            {"text": f"{SpecialTokens.image} {pair['caption']}", "images": [pair["image"]]}
            for pair in pairs(folder, name)
        ]

        def prepare() -> Callable[[], dict[str, Any]]:
            get_model(made.model_key)
            data = NestedDataset.from_list(rows)

            def run() -> dict[str, Any]:
                done = made.run(data)
                return {"pairs": len(done), "itm": [stats[score][0] for stats in done[Fields.stats]]}

            return run

        return prepare

    serve({name: work(name) for name in ("one", "five")})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
