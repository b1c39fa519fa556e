"""Curate image-text pairs with a reward model that learned from people.

The packages in here are the method and know no Dagster; `definitions` and `cli` assemble it.
Importing this package imports nothing else of it.
"""

import os

# Read when torch is loaded, here and in every worker. Its threads wait for each other by spinning, and by default for
# so long that where something else wants the cores too, the one that computes waits for those that spin.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
