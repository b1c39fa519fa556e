"""Build the wheel, install it into a clean environment, import the code location there.

Proves that the wheel holds everything the code location needs and that its four packages are ours.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = """
import sys
import assets, resources, sensors, compalign_dagster
from compalign_dagster.definitions import defs
for package in (assets, resources, sensors, compalign_dagster):
    assert package.__file__.startswith(sys.prefix), package.__file__
from compalign_dagster.pages.index import index_page
assert index_page([]).startswith(b"<!doctype html>"), "the templates are missing"
assert "torch" not in sys.modules, "loading the code location imported torch"
print(len(list(defs.resolve_all_asset_specs())), "assets load from the wheel")
"""


def main() -> None:
    """Raise when any step fails."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (wheel,) = folder.glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        subprocess.run(
            [
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "-c",
                ROOT / "constraints.txt",
                wheel,
            ],
            check=True,
        )
        subprocess.run([python, "-c", PROBE], check=True, cwd=folder)


if __name__ == "__main__":
    main()
