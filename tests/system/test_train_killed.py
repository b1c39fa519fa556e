"""`compalign train` killed and run again: the same command goes on and ends with the same bytes."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.processes import BIN, ROOT, compalign, environment

pytestmark = [pytest.mark.system, pytest.mark.slow]

_TINY = {
    "image_size": 16, "patch_size": 8, "hidden_size": 32, "heads": 2, "vision_layers": 1, "text_layers": 1,
    "joint_size": 16, "vocabulary_size": 300, "max_caption_tokens": 16, "pretrain_steps": 60, "pretrain_batch": 8,
    "steps": 60, "batch_images": 4, "validate_every": 5, "checkpoint_every": 5, "dropout": 0.1,
}  # fmt: skip
_SIZES = ("--pairs", "60", "--judged-images", "30", "--evaluation-pairs", "4", "--shard-pairs", "30")


def arguments(home: Path, out: str) -> list[str]:
    """The same training every time but for the name of its folder."""
    sample = home / "s"
    return [
        "train", "--annotations", str(sample / "labels"), "--shards", str(sample / "labels" / "shards"),
        "--shards", str(sample / "landing"), "--out", str(home / out), "--config", str(home / "tiny.json"),
        "--device", "cpu",
    ]  # fmt: skip


def version(folder: Path) -> str:
    return json.loads((folder / "model.json").read_text())["model_version"]


def made(home: Path, **settings: object) -> dict[str, str]:
    """A sample to train on, and the environment for it."""
    env = environment(home)
    (home / "tiny.json").write_text(json.dumps({**_TINY, **settings}))
    assert compalign("sample-crawl", "--out", str(home / "s"), *_SIZES, env=env).returncode == 0
    return env


def killed_at_its_first_checkpoint(home: Path, env: dict[str, str]) -> int:
    """Kill `compalign train` once it has written one, before it has a model; its process id."""
    process = subprocess.Popen(
        [str(BIN / "compalign"), *arguments(home, "killed")], env=env, cwd=ROOT, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    kept = home / ".killed.checkpoints"
    while not list(kept.glob("*.safetensors")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(kept.glob("*.safetensors")) and not (home / "killed").exists()
    return process.pid


def test_a_killed_train_goes_on_when_it_is_run_again(tmp_path):
    env = made(tmp_path)
    quiet = compalign(*arguments(tmp_path, "quiet"), env=env)
    assert quiet.returncode == 0, quiet.stderr
    killed_at_its_first_checkpoint(tmp_path, env)
    again = compalign(*arguments(tmp_path, "killed"), env=env)
    assert again.returncode == 0, again.stderr
    assert "going on from checkpoint" in again.stderr
    assert version(tmp_path / "killed") == version(tmp_path / "quiet")
    for name in ("metrics.json", "record.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes()
    assert not (tmp_path / ".killed.checkpoints").exists()


def workers(marker: str) -> list[str]:
    """Command lines of living processes that inherited an environment with this marker."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile, or is somebody else's
    return found


def test_two_processes_that_were_killed_leave_none_behind_and_go_on(tmp_path):
    env = made(tmp_path, processes=2, accumulation=2, steps=20, pretrain_steps=20)
    env["MARKER"] = marker = f"of-{tmp_path.name}-{time.time_ns()}"
    killed_at_its_first_checkpoint(tmp_path, env)
    end = time.monotonic() + 30
    while workers(marker) and time.monotonic() < end:
        time.sleep(0.2)
    assert workers(marker) == []
    again = compalign(*arguments(tmp_path, "killed"), env=env)
    assert again.returncode == 0, again.stderr
    assert "going on from checkpoint" in again.stderr
    quiet = compalign(*arguments(tmp_path, "quiet"), env=env)
    assert quiet.returncode == 0, quiet.stderr
    assert version(tmp_path / "killed") == version(tmp_path / "quiet")
    assert workers(marker) == []
