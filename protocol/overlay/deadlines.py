"""Deadlines by name: what the one timer of a node is armed from.

A machine sets a deadline under a key, moves it by setting it again, and drops it; the heap may still hold stale entries, which are
skipped when they surface (ignored, not cancelled). `first` is always at hand: it is read after every event, and changes seldom.
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush
from math import inf
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deadlines(Generic[Key]):
    """A set of named points in time."""

    __slots__ = ("_heap", "_sequence", "_when", "first")

    def __init__(self) -> None:
        self.first = inf
        """The earliest deadline, inf for none."""
        self._when: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._sequence = 0

    def set(self, key: Key, when: float) -> None:
        """Due at `when`; replaces what the key had."""
        before = self._when.get(key)
        if before == when:
            return
        self._when[key] = when
        self._sequence += 1
        heappush(self._heap, (when, self._sequence, key))
        if when < self.first:
            self.first = when
        elif before == self.first:
            self._surface()

    def drop(self, key: Key) -> None:
        if self._when.pop(key, None) == self.first:
            self._surface()

    def when(self, key: Key) -> float | None:
        """What was set, None where nothing is."""
        return self._when.get(key)

    def __contains__(self, key: Key) -> bool:
        return key in self._when

    def next(self) -> float | None:
        """The earliest deadline."""
        return self.first if self.first < inf else None

    def due(self, now: float) -> list[Key]:
        """Takes out and returns every key whose deadline is not after `now`, earliest first."""
        keys: list[Key] = []
        while self.first <= now:
            key = heappop(self._heap)[2]
            del self._when[key]
            keys.append(key)
            self._surface()
        return keys

    def _surface(self) -> None:
        heap, whens = self._heap, self._when
        while heap and whens.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        self.first = heap[0][0] if heap else inf
