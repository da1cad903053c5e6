"""Turns: as many at once as there are, and none lost with who dies or hangs in one. Forks of this process, as the launcher's are."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmrec_agent import turns as module
from fmrec_agent.turns import HUNG_S, Turns

WITHIN_S = 20.0


class Fork:
    """A process that does what it is told, one word at a time, and says what came of it."""

    def __init__(self, turns: Turns) -> None:
        heard, self._tell = os.pipe()
        self._hear, tells = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                while word := os.read(heard, 1):
                    done = turns.go_on() if word == b"g" else turns.end()
                    os.write(tells, b"t" if done else b"n")
            finally:
                os._exit(0)
        os.close(heard)
        os.close(tells)

    def asks(self) -> None:
        """Go on, without waiting for what comes of it."""
        os.write(self._tell, b"g")

    def answer(self, within_s: float = WITHIN_S) -> bool:
        """Is it in a turn now?"""
        assert select.select([self._hear], [], [], within_s)[0], "no answer"
        return os.read(self._hear, 1) == b"t"

    def goes_on(self) -> bool:
        self.asks()
        return self.answer()

    def ends(self) -> None:
        os.write(self._tell, b"e")
        self.answer()

    def waits(self) -> None:
        """Returns when it is known to wait in the kernel for a lock."""
        where, seen, deadline = Path(f"/proc/{self.pid}/wchan"), {"0"}, time.monotonic() + WITHIN_S
        while "futex" not in (at := where.read_text()):
            seen.add(at)
            if time.monotonic() > deadline:
                assert seen == {"0"}, f"it does not wait for a lock: it was in {sorted(seen)}"
                pytest.skip("this kernel does not say where a process waits")
            os.sched_yield()

    def has_answered(self) -> bool:
        return bool(select.select([self._hear], [], [], 0)[0])

    def signalled(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._tell)
        os.close(self._hear)


Forked = Callable[[Turns], Fork]


@pytest.fixture
def forked() -> Iterator[Forked]:
    forks: list[Fork] = []

    def fork(turns: Turns) -> Fork:
        forks.append(Fork(turns))
        return forks[-1]

    yield fork
    for one in forks:
        one.close()


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is taken for hung, however slow this machine is."""
    monkeypatch.setattr(module, "HUNG_S", 1000.0)


@pytest.mark.usefixtures("endless")
def test_as_many_at_once_as_there_are_and_the_next_when_one_ends(forked: Forked) -> None:
    turns = Turns(2)
    first, second, third = (forked(turns) for _ in range(3))
    assert first.goes_on()
    assert second.goes_on()
    third.asks()
    third.waits()
    assert not third.has_answered()
    second.ends()
    assert third.answer()


@pytest.mark.usefixtures("endless")
def test_who_goes_on_beyond_its_turn_lets_the_next_one_in(forked: Forked, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(1)
    monkeypatch.setattr(module, "TURN_S", 1000.0)
    patient = forked(turns)
    monkeypatch.setattr(module, "TURN_S", 0.0)
    short, other = forked(turns), forked(turns)
    assert short.goes_on()
    other.asks()
    other.waits()
    short.asks()
    assert other.answer(), "short's turn was over"
    other.ends()
    assert short.answer()
    short.ends()
    assert patient.goes_on()
    assert patient.goes_on(), "its turn lasts"


@pytest.mark.usefixtures("endless")
def test_who_is_killed_in_its_turn_has_given_it_back(forked: Forked) -> None:
    turns = Turns(1)
    first, second, third = (forked(turns) for _ in range(3))
    assert first.goes_on()
    second.asks()
    second.waits()
    first.signalled(signal.SIGKILL)
    assert second.answer()
    second.ends()
    assert third.goes_on(), "the lock is as good as before"


def test_while_somebody_hangs_in_its_turn_the_others_go_on_without(forked: Forked) -> None:
    turns = Turns(1)
    first, second = (forked(turns) for _ in range(2))
    began = time.monotonic()
    assert first.goes_on()
    first.signalled(signal.SIGSTOP)
    assert not second.goes_on(), "without a turn"
    assert time.monotonic() - began > HUNG_S
    first.signalled(signal.SIGCONT)
    first.ends()
    second.ends()
    assert second.goes_on(), "in a turn again"


def stopped_at_the_gate(one: Fork, other: Fork) -> None:
    """It is stopped while it looks for the only turn, which the other has, and then gives back."""
    assert other.goes_on()
    one.asks()
    one.waits()
    one.signalled(signal.SIGSTOP)
    other.ends()


def test_who_hangs_while_it_looks_for_a_turn_holds_up_nobody_either(forked: Forked) -> None:
    turns = Turns(1)
    first, second, third = (forked(turns) for _ in range(3))
    stopped_at_the_gate(second, first)
    assert not third.goes_on(), "without a turn: the gate is shut"
    second.signalled(signal.SIGCONT)
    second.answer()
    second.ends()
    third.ends()
    assert third.goes_on(), "in a turn again"


@pytest.mark.parametrize("lock", [0, 1], ids=["turn", "gate"])
def test_who_was_stopped_before_it_could_say_since_when_is_found_out(forked: Forked, monkeypatch: pytest.MonkeyPatch, lock: int) -> None:
    turns = Turns(1)
    monkeypatch.setattr(turns, "_stamp", lambda slot, since: None)
    silent = forked(turns)
    monkeypatch.undo()
    other = forked(turns)
    if lock == 1:
        stopped_at_the_gate(silent, forked(turns))
    else:
        assert silent.goes_on()
    assert not other.goes_on(), "without a turn"


def test_where_there_are_no_such_locks_nobody_waits(forked: Forked, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(1)
    monkeypatch.setattr(turns, "_kept", False)
    assert [forked(turns).goes_on() for _ in range(2)] == [False, False]


def test_turns_that_are_dropped_in_a_turn_leave_their_threads_others_usable() -> None:
    """In a process of its own, for it would die of SIGSEGV: the next lock would write to where the last one was."""
    script = "from fmrec_agent.turns import Turns; other, held = Turns(1), Turns(1); held.go_on(); del held; other.go_on(); other.end()"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
