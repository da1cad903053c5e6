"""A thread with file descriptors of its own, so that it keeps no connection of its process open when that is killed.

Threads share one table of descriptors, and the kernel closes what is in it when the last of them is gone. A thread that gives way to all
others is the last to get a turn, its own death included: a tenth of a second and more, where many train. `unshare(2)` with CLONE_FILES
gives the calling thread a copy of the table as it is. What others open later is not in it, so connections must be opened later.

What follows for the thread: it can't use what others open from now on, nor they what it opens.
"""

from __future__ import annotations

import ctypes
import os

CLONE_FILES = 0x400
"""Of <sched.h>."""


def keep_own_descriptors(without: int | None = None) -> None:
    """From now on the calling thread's descriptors are its own; `without` is not among them.

    Where the system does not let it, they stay shared: a death is noticed later then.
    """
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare is not None and unshare(CLONE_FILES) == 0 and without is not None:
        os.close(without)
