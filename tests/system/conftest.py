import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import compalign, environment


@dataclass(frozen=True)
class Demo:
    """A home in which `compalign demo` ran, and what it printed."""

    home: Path
    output: str
    seconds: float
    env: dict[str, str]

    def path(self, name: str) -> Path:
        """A path that the demo printed after this word."""
        found = re.search(rf"^{name}\s+(\S+)$", self.output, re.MULTILINE)
        assert found, self.output
        return Path(found.group(1))


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Demo:
    """The whole demo as a user runs it, once for all system tests."""
    import time

    home = tmp_path_factory.mktemp("demo")
    env = environment(home)
    started = time.monotonic()
    done: subprocess.CompletedProcess[str] = compalign("demo", env=env)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    print(done.stderr, done.stdout)
    return Demo(home, done.stdout, time.monotonic() - started, env)
