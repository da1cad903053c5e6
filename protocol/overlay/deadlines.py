"""Deadlines by name: what the one timer of a node is armed from.

A machine sets a deadline under a key, moves it by setting it again, and drops it; the heap may still hold stale entries, which are
skipped when they surface (ignored, not cancelled).
"""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deadlines(Generic[Key]):
    """A set of named points in time."""

    def __init__(self) -> None:
        self._when: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._sequence = 0

    def set(self, key: Key, when: float) -> None:
        """Due at `when`; replaces what the key had."""
        if self._when.get(key) == when:
            return
        self._when[key] = when
        self._sequence += 1
        heappush(self._heap, (when, self._sequence, key))

    def drop(self, key: Key) -> None:
        self._when.pop(key, None)

    def __contains__(self, key: Key) -> bool:
        return key in self._when

    def next(self) -> float | None:
        """The earliest deadline."""
        while self._heap and self._when.get(self._heap[0][2]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Key]:
        """Takes out and returns every key whose deadline is not after `now`, earliest first."""
        keys: list[Key] = []
        while (when := self.next()) is not None and when <= now:
            key = heappop(self._heap)[2]
            del self._when[key]
            keys.append(key)
        return keys
