"""What a process has used: seconds on the clock, seconds of its processors, its highest resident size."""

import time
from pathlib import Path

_PEAK = "VmHWM"


class Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._started = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """`seconds` on the clock and `cpu_seconds` of all threads together."""
        wall, processors = self._started
        return {
            "seconds": round(time.monotonic() - wall, 4),
            "cpu_seconds": round(time.process_time() - processors, 4),
        }


def peak_mib() -> float:
    """The highest resident size so far, imports included."""
    status = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in status if line.startswith(_PEAK)) / 1024, 1)
