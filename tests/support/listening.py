"""Where the processes below this one listen, read from /proc: addresses as the kernel writes them, without ports."""

import os
from pathlib import Path

LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F")  # 127.0.0.1, and the same within IPv6


def children(process: int) -> list[int]:
    """All processes below one, their own children among them."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def listening() -> set[str]:
    """Local addresses of the listening TCP sockets of this process and of those below it."""
    own = [os.getpid(), *children(os.getpid())]
    files = [file for process in own for file in Path(f"/proc/{process}/fd").iterdir()]
    sockets = {str(file.readlink()) for file in files if file.is_socket()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
