"""Real programs that some tests need: without one a test skips and says so, but not in CI."""

import os
import shutil
from typing import NoReturn

import pytest


def program(*names: str) -> str:
    """The path of the first of these programs that is installed."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    absent(f"{' or '.join(names)} is not installed (Debian package {names[0]})")


def absent(message: str) -> NoReturn:
    """Skip the test for want of something, or fail it where everything is to be there."""
    if os.environ.get("SYSTEM_TESTS") == "required":
        pytest.fail(message)
    pytest.skip(message)
