"""A measured program waits for its turn: it reads a name from standard input, does that work, answers in JSON.

All programs live side by side and take turns, so that start-up is apart and a machine that slows down slows all of
them. Standard library only: every rival's environment imports this.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "GX_ANALYTICS_ENABLED": "false",
}

Work = Callable[[], Callable[[], dict[str, Any]]]  # prepares, and returns what is timed, whose values are JSON


def serve(works: Mapping[str, Work]) -> None:
    """Answer until standard input ends. What works print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        print(json.dumps({"works": list(works)}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(timed(works[line.strip()]())), file=answers, flush=True)


def timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, with its wall time and the CPU time of all threads and finished child processes, seconds."""
    started, before = time.perf_counter(), cpu_seconds()
    found = work()
    return {"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - before, **found}


def cpu_seconds() -> float:
    """CPU seconds of this process and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


class Program:
    """A program that serves, in a process of its own; `threads` is what it may compute with at once."""

    def __init__(self, python: str | Path, module: str, *arguments: object, threads: int = 1) -> None:
        self.name = module
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        self._process = subprocess.Popen(
            [str(python), "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **OFFLINE, **limits, "TOKENIZERS_PARALLELISM": "false"},
            text=True,
        )
        self.works: list[str] = self._answer()["works"]

    def ask(self, work: str) -> dict[str, Any]:
        """Have one work done and timed."""
        assert self._process.stdin is not None
        self._process.stdin.write(work + "\n")
        self._process.stdin.flush()
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} left with {self._process.wait(60)}; its last words are above")
        return json.loads(line)
