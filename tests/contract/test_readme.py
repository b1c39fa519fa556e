"""The README's commands run as written, and its opening holds what a newcomer looks for."""

import os
import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT
from tests.support.processes import BIN

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readme_is_short_and_shows_pictures_and_both_commands_by_line_25():
    assert len(README.split()) <= 1200
    top = README.splitlines()[:25]
    assert sum(line.startswith("![") for line in top) == 2
    assert "make demo" in top
    assert "make test" in top


def test_every_picture_and_linked_page_exists():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    ("target", "command"),
    [("demo", "compalign demo"), ("ui", "compalign ui"), ("test", "pytest")],
)
def test_the_make_targets_run_what_the_tests_run(target, command):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert command in done.stdout


@pytest.mark.slow
def test_the_commands_without_dagster_run_as_written(tmp_path):
    commands = [line for block in BLOCKS for line in block.splitlines() if ".venv/bin/compalign" in line]
    assert len(commands) >= 6
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(BIN)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COMPALIGN_")}
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "var" / "try" / "kept.parquet").is_file()
