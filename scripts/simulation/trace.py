"""What happened, at the price of one tuple a step: a running digest, and the last steps for whoever asks after a failure.

The clock appends each step that it takes, as it stands in its heap; facts that nodes tell are appended in the same shape. Nothing is
formatted until a story is asked for. The digest is over time, node, and kind of each step, so that it is the same for the same seed
whatever PYTHONHASHSEED says.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from sys import byteorder
from typing import Any

from protocol.overlay import effects as fx
from protocol.overlay import events as ev
from protocol.wire.messages import TABLE, Alive, Heartbeat, Route, TreePulse

Step = tuple[float, int, Any, Any, Any]
"""(when, sequence, what to call, subject, detail)."""

CHUNK = 8192
KEPT_CHUNKS = 24
"""Of the last steps so many are kept."""
QUIET = (Heartbeat, Alive, TreePulse, type(None), float)
"""Too many to be worth a line of a story."""
_KINDS = (*(row.message for row in TABLE), *ev.Event.__args__, *fx.Effect.__args__, str, float)
KIND = {kind: number for number, kind in enumerate(dict.fromkeys(_KINDS), 1)}


class Trace:
    """steps: where the clock appends; full() is to be asked now and then whether they must be digested."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.count = 0
        self._kept: deque[list[Step]] = deque(maxlen=KEPT_CHUNKS)
        self._digest = blake2b(digest_size=16)

    def flush(self) -> None:
        """Digest the steps and put them away."""
        kind = KIND.get
        moments = array("d", [step[0] for step in self.steps])
        marks = array("Q", [subject.index << 16 | kind(detail.__class__, 0) for _, _, _, subject, detail in self.steps])
        for numbers in (moments, marks):
            if byteorder == "big":
                numbers.byteswap()
            self._digest.update(numbers)
        self._kept.append(self.steps[:])
        self.count += len(self.steps)
        self.steps.clear()

    def digest(self) -> str:
        self.flush()
        return self._digest.hexdigest()

    def story(self, names: Iterable[str], lines_max: int = 40) -> list[str]:
        """The last lines of these nodes, each node's own, in the order of time."""
        wanted = set(names)
        left = dict.fromkeys(wanted, lines_max)
        found: list[str] = []
        for chunk in (self.steps, *reversed(self._kept)):
            for when, _, _, subject, detail in reversed(chunk):
                name = getattr(subject, "name", "")
                if name in wanted and left[name] and not isinstance(detail, QUIET):
                    left[name] -= 1
                    found.append(f"{when:10.4f} {name:10} {self._words(subject, detail)}"[:240])
            if not any(left.values()):
                break
        return found[::-1]

    def _words(self, subject: Any, detail: Any) -> str:
        sender = getattr(subject, "sender", None)
        if sender is None:
            return detail if isinstance(detail, str) else repr(detail)
        if isinstance(detail, Route):
            return f"<- {sender} Route({detail.body!r}, hops={detail.hops}) to {detail.key.short}"
        return f"<- {sender} {detail!r}"
