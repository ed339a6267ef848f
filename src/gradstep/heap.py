"""Memory that a step frees stays with the process, where the next step finds it.

glibc gives memory back to the system as soon as more than a threshold of it lies free, and each page that is asked for
anew costs a fault: 900 to 1,500 of them in a step of LeNet's, up to a third of its time. The threshold is twice the
largest block that was mapped by itself and freed since the program began, of 32 MB at most (mallopt(3),
M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, on how they adjust themselves). So one block of nearly that, asked for and freed
with none of its pages touched, is all it takes. Every program that ever freed such a block is in that state: there is
nothing to undo. Other C libraries just get and free a block.
"""

from __future__ import annotations

import numpy as np

_LARGEST = 2**25 - 2**16  # bytes: 32 MB with malloc's own in front would be too many


def keep_freed() -> None:
    """From here on blocks of up to 32 MB are not mapped by themselves, and 64 MB that lie free at the heap's end stay.

    Takes some microseconds, and no memory.
    """
    np.empty(_LARGEST, np.uint8)  # not torch's, which fills what it gives under deterministic algorithms
