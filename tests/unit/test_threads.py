"""How torch's threads wait is settled before torch is loaded, and whoever starts the process has the last word."""

import os
import subprocess
import sys

import pytest

CODE = """if True:
    import os, sys
    import compalign_dagster
    assert "torch" not in sys.modules
    print(os.environ.get("GOMP_SPINCOUNT"))"""


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_spin_for_a_short_while_unless_somebody_asks_for_more(given, spins):
    inherited = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run(
        [sys.executable, "-c", CODE], env=inherited | given, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == spins
