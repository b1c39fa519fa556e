"""How busy a process keeps its machine: CPU seconds a second, and a GPU's utilisation where its driver tells.

What does not belong here: what the time was spent on, which the engine measures.
"""

import time
from importlib.util import find_spec

_SECONDS_BETWEEN_LOOKS = 1.0  # the driver averages over about as long


class Usage:
    """Of this process, between calls of `since_last`; of a GPU, the mean of what was seen by `look`."""

    def __init__(self, device: str) -> None:
        self._asks = device.startswith("cuda") and find_spec("pynvml") is not None
        self._device, self._looked = device, 0.0
        self._seen: list[float] = []
        self._began = (time.monotonic(), time.process_time())

    def look(self) -> None:
        """Ask the driver, at most once a second; costs nothing without a GPU."""
        now = time.monotonic()
        if not self._asks or now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        import torch

        self._looked = now
        try:
            self._seen.append(torch.cuda.utilization(self._device) / 100)
        except Exception:  # NVML's own classes, where a container hides the driver's counters
            self._asks = False

    def since_last(self) -> dict[str, float | None]:
        """`cpu_seconds_per_second` of all threads together, `gpu_utilisation` from 0 to 1 or None."""
        (wall, cpu), now = self._began, (time.monotonic(), time.process_time())
        seen, self._seen, self._began = self._seen, [], now
        return {
            "cpu_seconds_per_second": round((now[1] - cpu) / max(now[0] - wall, 1e-9), 3),
            "gpu_utilisation": round(sum(seen) / len(seen), 3) if seen else None,
        }
