"""A thread with descriptors of its own keeps nothing open that others close."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from queue import Queue

from fmrec_agent.descriptors import keep_own_descriptors


class Other:
    """A thread that does one thing after the other for us."""

    def __init__(self) -> None:
        self._asked: Queue[Callable[[], object] | None] = Queue()
        self._answers: Queue[object] = Queue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while (ask := self._asked.get()) is not None:
            self._answers.put(ask())

    def does(self, ask: Callable[[], object]) -> object:
        self._asked.put(ask)
        return self._answers.get(timeout=10)

    def ends(self) -> None:
        self._asked.put(None)
        self._thread.join(10)


def has(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_what_is_opened_later_and_what_is_named_ends_with_those_who_have_it() -> None:
    line, end = os.pipe()
    woken, waking = os.pipe()
    other = Other()
    other.does(lambda: keep_own_descriptors(without=end))
    ours, theirs = socket.socketpair()
    assert not other.does(lambda: has(theirs.fileno()) or has(end))
    assert has(end), "here it is open"
    os.close(end)
    theirs.close()
    assert (os.read(line, 1), ours.recv(1)) == (b"", b""), "both have ended, though the other thread lives"
    other.does(lambda: os.write(waking, b"!"))
    assert os.read(woken, 1) == b"!", "what was there before it has as we do"
    other.does(lambda: os.close(waking))
    assert has(waking), "and closes it for itself alone"
    other.ends()
    for descriptor in (line, woken, waking):
        os.close(descriptor)
    ours.close()
