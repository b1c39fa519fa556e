"""What is drawn when not everything is looked at again: from the digest of what is verified, so that anybody draws it.

What belongs here: which rows, and what a sample without a fault says. What does not: looking at them.
"""

import hashlib
import math

import numpy as np

from compalign_dagster.statistics import most_wrong


def drawn(seed: str, part: str, rows: int, share: float) -> list[int]:
    """Positions of a share (0 to 1, rounded up) of `rows`, rising, each as likely as any other.

    The same seed and part draw the same ones on every machine. Who alters a version cannot foresee a seed that the
    auditor adds.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share is from 0 to 1, not {share}")
    count = min(rows, math.ceil(share * rows))
    if count == rows:
        return list(range(rows))
    digest = hashlib.sha256(f"{seed}\n{part}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest)))
    return sorted(generator.choice(rows, count, replace=False).tolist())


def bound(wrong: int, of: int, total: int, what: str) -> str:
    """What a sample says of all, in words: `0 of 300 pairs wrong, so at most 0.99 % at 95 %`."""
    if of == total:
        return f"{wrong} of {of:,} {what} wrong: all of them were looked at"
    return f"{wrong} of {of:,} {what} wrong, so at most {100 * most_wrong(wrong, of):.2g} % of {total:,} at 95 %"


def chance(altered: float, of: int) -> float:
    """How likely a sample of `of` holds at least one of a share `altered` of all, 0 to 1."""
    return 1 - (1 - altered) ** of
