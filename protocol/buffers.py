"""Memory for large records, used again: what a superseded version was in is what the next one comes into.

A page that a process touches for the first time is made by the kernel, and on a virtual machine by its host: 3 ms a megabyte were measured
where memory had been given back to the host meanwhile, 0.1 ms where not, and copying takes 0.2 ms. The C library keeps freed memory up to
MALLOC_KEEPS_BYTES_MAX itself; what is larger it gives back at once. So that a recovery of 100 MB does not wait for the host, the last
buffers that nobody reads any more are kept, SPARE_BYTES_MAX together.
"""

from __future__ import annotations

from weakref import finalize

import numpy as np

from protocol.tensors import Array

MALLOC_KEEPS_BYTES_MAX = 32 << 20
SPARE_BYTES_MAX = 256 << 20
"""Of one process. Larger records are received into new memory each time."""
GRAIN_BYTES = 2 << 20
"""New memory comes in multiples of this, of which nothing is touched that is not used: a version is often a little longer than the last, by
the digits of a counter."""
WASTED_SHARE_MAX = 0.25
"""A spare that is longer than what is wanted by more than this is left for others."""

_spares: dict[int, Array] = {}
"""By identity, the last one that was given back at the end. Threads share it, and a buffer may be given back in the middle of anything: no
lock, but steps of which each is one operation of the dictionary."""


def buffer_of(size: int) -> memoryview:
    """So many bytes, whatever is in them. They are used again when no view of them is left: only views of this view may be made."""
    if size <= MALLOC_KEEPS_BYTES_MAX:
        return np.empty(size, np.uint8).data
    spare = _taken(size)
    whole = np.empty(-(-size // GRAIN_BYTES) * GRAIN_BYTES, np.uint8) if spare is None else spare
    lent = whole[:size]
    finalize(lent, _give_back, whole).atexit = False
    return lent.data


def _taken(size: int) -> Array | None:
    for identity, spare in reversed(list(_spares.items())):
        if size <= len(spare) <= size * (1 + WASTED_SHARE_MAX) and _spares.pop(identity, None) is not None:
            return spare
    return None


def _give_back(whole: Array) -> None:
    if len(whole) > SPARE_BYTES_MAX:
        return
    _spares[id(whole)] = whole
    kept = 0
    for identity, spare in reversed(list(_spares.items())):
        kept += len(spare)
        if kept > SPARE_BYTES_MAX:
            _spares.pop(identity, None)
