"""A process's own memory. `ru_maxrss` will not do: a child's starts at that of the process that started it."""

from pathlib import Path


def mib(field: str = "VmHWM") -> int:
    """A line of /proc/self/status in MiB: `VmHWM` is the peak, `VmRSS` what is held now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) >> 10
