"""Kill -9 a training at several points, let another process go on, and compare the model with that of a quiet run.

    python -m tests.support.killed_training FOLDER [--bug NAME] [--points N ...] [--random N]

A parent imports everything once and computes nothing, so that a fork is a fresh and idle process. Each point has a
folder of its own: a child is killed there (by itself at a named point, by the parent at a random moment), then another
child trains to the end. Prints one JSON object.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = {
    "pretrain_steps": 6,
    "steps": 8,
    "checkpoint_every": 2,
    "validate_every": 2,
    "accumulation": 2,
    "dropout": 0.2,
    "near_misses": True,
    "joint_weight": 0.5,
    "joint_every": 2,
}
# What to do, and at which step, or in which checkpoint from 1: 3 belong to stage 0, 4 to stage 1.
POINTS = (
    ("pretraining steps", 1),
    ("pretraining steps", 5),
    ("training steps", 1),
    ("training steps", 7),
    ("half written", 2),
    ("half written", 5),
    ("before rename", 6),
    ("after rename", 6),
)


def preload() -> None:
    """Import what the work needs, so that a child starts with it; threads would not survive a fork."""
    import accelerate.state  # noqa: F401
    import torch
    from PIL import Image

    import compalign_dagster.reward.blip
    import compalign_dagster.reward.training  # noqa: F401

    torch.set_num_threads(1)
    Image.init()


def work(folder: Path, progress: Callable[[int, int, str], None]) -> None:
    """Train, save the model into a folder of this process, and leave its version in a file, whole or not at all."""
    from compalign_dagster.reward.folder import model_version, save_model
    from compalign_dagster.reward.training import train
    from tests.support.tiny_reward import tiny_config, tiny_data

    data = tiny_data(folder.parent / "data")
    trained = train(tiny_config(**CONFIG), data, checkpoints=folder / "checkpoints", progress=progress)
    saved = save_model(trained.model, folder / str(os.getpid()), metrics=trained.metrics, record=trained.record)
    found = {"version": model_version(saved), "record": trained.record, "metrics": trained.metrics}
    half = saved / "version.json"
    half.write_text(json.dumps(found))
    half.replace(folder / half.name)


def dying(folder: Path, what: str, when: int) -> None:
    """Train until a named point, and die there."""
    from compalign_dagster.reward import checkpoints

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def progress(done: int, total: int, name: str) -> None:
        if (name, done) == (what, when):
            die()

    written = 0
    save_file, sync = checkpoints.save_file, checkpoints._sync

    def half(tensors: Any, path: Path, **options: Any) -> None:
        nonlocal written
        written += 1
        save_file(tensors, path, **options)
        if (what, when) == ("half written", written):
            os.truncate(path, path.stat().st_size // 2)
            die()

    def synced(path: Path) -> None:
        sync(path)
        if (what, when) == ("after rename" if path.is_dir() else "before rename", written):
            die()

    checkpoints.save_file, checkpoints._sync = half, synced
    work(folder, progress)


def plant(bug: str) -> None:
    """Break this process."""
    from compalign_dagster.fitting import Fitting
    from compalign_dagster.reward import learning, pretraining

    if bug == "no-optimiser":
        Fitting.state = lambda self: {}  # type: ignore[method-assign]
    elif bug == "no-seeds":
        learning.reseed = pretraining.reseed = lambda *numbers: None
    elif bug:
        raise SystemExit(f"no such bug: {bug}")


def forked(run: Callable[[], None], after: float | None = None) -> int:
    """The status of a child that does this; it is killed from outside after some seconds, if it still runs."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path, bug: str, points: list[int], moments: int, seed: int) -> dict[str, Any]:
    """Every point and what came of it."""
    preload()
    plant(bug)

    def quiet(done: int, total: int, what: str) -> None:
        return

    def result(at: Path) -> dict[str, Any]:
        path = at / "version.json"
        return json.loads(path.read_text()) if path.exists() else {}

    (folder / "quiet").mkdir(parents=True)
    started = time.monotonic()
    forked(lambda: work(folder / "quiet", quiet))
    seconds = time.monotonic() - started
    expected = result(folder / "quiet")
    draw = random.Random(seed)
    found = []
    for number in [*points, *range(len(POINTS), len(POINTS) + moments)]:
        at = folder / str(number)
        at.mkdir()
        if number < len(POINTS):
            what, when = POINTS[number]
            status = forked(lambda at=at, what=what, when=when: dying(at, what, when))  # type: ignore[misc]
            entry: dict[str, Any] = {"point": f"{what} {when}"}
        else:
            moment = draw.uniform(0.1, 0.95) * seconds
            status = forked(lambda at=at: work(at, quiet), after=moment)  # type: ignore[misc]
            entry = {"point": f"after {moment:.2f} s"}
        kept = sorted(path.name[:27] for path in (at / "checkpoints").glob("*.safetensors"))
        if not (at / "version.json").exists():
            ended = forked(lambda at=at: work(at, quiet))  # type: ignore[misc]
            if ended != 0:
                raise SystemExit(f"the training after {entry['point']!r} ended with {ended}")
        again = result(at)
        found.append(
            entry
            | {
                "killed": status == -signal.SIGKILL,
                "checkpoints": kept,
                "same_model": again.get("version") == expected["version"],
                "same_record": again.get("record") == expected["record"],
                "same_metrics": again.get("metrics") == expected["metrics"],
            }
        )
    return {"version": expected["version"], "seconds": seconds, "points": found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bug", default="")
    parser.add_argument("--points", type=int, nargs="*", default=list(range(len(POINTS))))
    parser.add_argument("--random", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    json.dump(main(given.folder, given.bug, given.points, given.random, given.seed), sys.stdout)
