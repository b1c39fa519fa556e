"""Starting the project's own commands as real processes, and stopping all they started."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def environment(home: Path, **settings: object) -> dict[str, str]:
    """This process's environment with settings for `home`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COMPALIGN_")}
    given = {f"COMPALIGN_{name.upper()}": str(value) for name, value in settings.items()}
    return {**clean, "COMPALIGN_HOME": str(home), **given}


def compalign(*arguments: str, env: Mapping[str, str], timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    return subprocess.run(
        [str(BIN / "compalign"), *arguments],
        env=dict(env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str, seconds: float) -> None:
    """Wait until a URL answers; TimeoutError otherwise."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > end:
                raise TimeoutError(f"{url} did not answer in {seconds} s: {error}") from error
            time.sleep(0.5)


def stop_group(process: subprocess.Popen, seconds: float = 30) -> None:
    """Interrupt a process started in a session of its own, then kill what is left of its group."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
