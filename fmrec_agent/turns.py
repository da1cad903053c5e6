"""Turns: of the agents of one launcher, as many train at once as there are processors.

Where twelve training threads share two cores, ten wait for one, and most of them hold their interpreter while they wait. The event loop
beside such a thread can answer nothing before the thread has had a core again, tens of milliseconds later, however much nicer it
is: a priority inversion, and a look-up waits for its neighbours. A thread that waits for its turn waits in the kernel, without the
interpreter; and of two trainings that would alternate on one core, neither ends earlier for it.

1. A turn is a lock in memory that the forks of one launcher share. It lasts TURN_S, or the iteration that is begun before that.
2. One at a time looks for a turn, and holds the gate meanwhile, which is a lock, too: so who has had a turn stands in line again with
   the others. It sleeps at one of the locks, and looks every LOOK_S whether another is free.
3. The locks are robust mutexes (POSIX): who is killed has given back what it held.
4. Who hangs (SIGSTOP, or an iteration of that length) has not. While a lock has been held for longer than HUNG_S, the others train without
   turns, as they would where there are none. Each lock says since when it is held; of one whose holder was stopped before it could say so,
   somebody who has waited for HUNG_S says it.

Processors are those that this process may use; a container's quota of time is not seen, nor are other launchers.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
import time
from collections.abc import Iterable

TURN_S = 0.02
LOOK_S = 0.001
HUNG_S = 1.0
PATIENCE_S = HUNG_S / 10
"""Who waits at the gate looks so often whether somebody hangs."""
SLOT_BYTES = 128
"""A mutex of at most 64 bytes, then since when it is held, monotonic seconds, 0 where it is not."""
_SINCE = struct.Struct("@d")
_SINCE_AT = 64
_PROCESS_SHARED = _ROBUST = 1
"""Of <pthread.h>, on Linux."""
_MAPPED: list[mmap.mmap] = []
"""Every memory that has such locks, for as long as the process lives: a thread's list of those that it holds, which the system keeps in the
locks themselves, must not lead to memory that was given back."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Turns:
    """Made before the forks; in each of them one thread uses it. Where the system has no robust mutexes, it is always one's turn."""

    def __init__(self, number: int) -> None:
        self._number = self._gate = number
        self._memory = mmap.mmap(-1, (number + 1) * SLOT_BYTES)
        _MAPPED.append(self._memory)
        self._locks = [(ctypes.c_char * _SINCE_AT).from_buffer(self._memory, slot * SLOT_BYTES) for slot in range(number + 1)]
        self._libc = ctypes.CDLL(None)
        self._kept = all(hasattr(self._libc, f"pthread_mutex_{name}") for name in ("timedlock", "consistent"))
        self._mine: int | None = None
        self._ends = 0.0
        if self._kept:
            attributes = ctypes.create_string_buffer(64)
            self._libc.pthread_mutexattr_init(attributes)
            self._libc.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED)
            self._libc.pthread_mutexattr_setrobust(attributes, _ROBUST)
            for lock in self._locks:
                self._libc.pthread_mutex_init(lock, attributes)

    def go_on(self) -> bool:
        """Waits for a turn where this thread has none, or its last is over. False where it may go on without one (rule 4)."""
        if time.monotonic() >= self._ends:
            self.end()
            self._mine = self._next() if self._kept else None
            self._ends = time.monotonic() + TURN_S
        return self._mine is not None

    def end(self) -> None:
        """Give the turn back, where there is one."""
        self._ends = 0.0
        if self._mine is not None:
            self._unlock(self._mine)
            self._mine = None

    def _next(self) -> int | None:
        """Rule 2."""
        began, turns = time.monotonic(), range(self._number)
        everything = range(self._number + 1)
        while not self._lock(self._gate, 0.0 if self._somebody_hangs(everything) else PATIENCE_S):
            self._say_since(began, (self._gate,))
            if self._somebody_hangs(everything):
                return None
        began, slot = time.monotonic(), 0
        try:
            while True:
                found = next((free for free in turns if self._lock(free)), None)
                if found is None and self._lock(slot, LOOK_S):
                    found = slot
                if found is not None or self._somebody_hangs(turns):
                    return found
                self._say_since(began, turns)
                slot = (slot + 1) % self._number
        finally:
            self._unlock(self._gate)

    def _lock(self, slot: int, patience_s: float = 0.0) -> bool:
        """Whether it is ours now."""
        lock = self._locks[slot]
        result = self._libc.pthread_mutex_timedlock(lock, ctypes.byref(_after(patience_s)))
        if result == errno.EOWNERDEAD:
            self._libc.pthread_mutex_consistent(lock)
        if result not in (0, errno.EOWNERDEAD):
            return False
        self._stamp(slot, time.monotonic())
        return True

    def _unlock(self, slot: int) -> None:
        self._stamp(slot, 0.0)
        self._libc.pthread_mutex_unlock(self._locks[slot])

    def _stamp(self, slot: int, since: float) -> None:
        _SINCE.pack_into(self._memory, slot * SLOT_BYTES + _SINCE_AT, since)

    def _since(self, slot: int) -> float:
        return float(_SINCE.unpack_from(self._memory, slot * SLOT_BYTES + _SINCE_AT)[0])

    def _somebody_hangs(self, locks: Iterable[int]) -> bool:
        """Has one of these been held for too long?"""
        now = time.monotonic()
        return any(0 < self._since(slot) < now - HUNG_S for slot in locks)

    def _say_since(self, began: float, locks: Iterable[int]) -> None:
        """Rule 4: we have waited for these since then."""
        if time.monotonic() > began + HUNG_S:
            for slot in locks:
                if self._since(slot) == 0.0:
                    self._stamp(slot, began)


def _after(seconds: float) -> _Timespec:
    """So long from now, by the clock that mutexes wait by."""
    at = time.clock_gettime_ns(time.CLOCK_REALTIME) + int(1e9 * seconds)
    return _Timespec(at // 10**9, at % 10**9)
