"""The trainer: runs one job of a learner in a thread of its own, so that heartbeats never wait for it.

The learner is built in that thread too: torch keeps its number of threads by thread, and more than one each ruins twelve agents on
two cores. Between iterations the thread looks whether it has been told to stop, and takes a snapshot where one is due. The snapshot
is the only pause that checkpointing costs training; its length is kept in `pause_s`.

Whatever a learner raises is a LearnerError here (stranger.py). What it returns as a number may be numpy's or torch's, which no message
carries: here it becomes Python's, with the same bits.

Where a launcher has more agents than processors, an iteration waits for its turn (turns.py); a life's first does not.

A killed process is known by the end of its connections, and these end when no thread is left that shares their descriptors. The training
thread gives way to all others and would be the last, so where a process is one agent's this thread has descriptors of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fmrec_agent.learning.learner import Contribution, Job, Learner, LearnerError, Tensors
from fmrec_agent.learning.stranger import asked, contribution_of, state_of
from fmrec_agent.turns import Turns
from protocol.wire.codec import pack, unpack
from protocol.wire.messages import Phase

Result = TypeVar("Result")
STATE_BYTES_MAX = 1 << 30
TRAINING_NICER = 10
"""Than the process itself, which may have been started with a niceness of its own."""
NICENESS_MAX = 19
SCHEDULED = Path("/proc/thread-self/schedstat")
"""Of Linux: nanoseconds on a processor, nanoseconds in the queue for one, and how often."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the next iteration reads. done, total: iterations of the job; iteration: over the agent's whole life.

    theta: the digest of what the job began from: a round that is announced anew from another theta is other work.
    """

    phase: Phase
    round: int
    theta: bytes
    done: int
    total: int
    iteration: int
    loss: float | None
    tensors: Tensors
    extra: bytes

    def sealed_state(self) -> bytes:
        """What a record keeps beside the tensors."""
        return pack({"done": self.done, "total": self.total, "extra": self.extra})


def opened_state(state: bytes) -> tuple[int, int, bytes]:
    """(done, total, the learner's own bytes) out of a record's state."""
    fields = unpack(state, STATE_BYTES_MAX)
    return int(fields["done"]), int(fields["total"]), bytes(fields["extra"])


def _yield_to_heartbeats() -> None:
    """On Linux niceness is a thread's own: training gives way to every event loop on the machine.

    From the second iteration of a life on: the others may be waiting for a life that takes another's place.
    """
    niceness = min(NICENESS_MAX, os.getpriority(os.PRIO_PROCESS, 0) + TRAINING_NICER)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _waited_s() -> float:
    """How long the calling thread has waited for a processor in its life; 0 where the system does not say."""
    try:
        return int(SCHEDULED.read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _tidily(work: Callable[..., Result], *arguments: Any) -> Result:
    """Do it. What an error holds, open files above all, is let go here: another thread would close its own descriptors instead."""
    try:
        return work(*arguments)
    except Exception as error:
        told: BaseException | None = error
        seen: set[int] = set()
        while told is not None and id(told) not in seen:  # an error may be its own cause
            seen.add(id(told))
            traceback.clear_frames(told.__traceback__)
            told = told.__cause__ or told.__context__
        raise


def _number(kind: type[Result], what: str, value: Any) -> Result:
    """The learner's value as Python's own. LearnerError where it is none, or no whole one where that is asked for."""
    try:
        number = kind(value)  # type: ignore[call-arg]
        exact = not isinstance(value, str | bytes) and (kind is float or bool(number == value))
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise LearnerError(f"{what} is {value!r:.80}, and should be {'a float' if kind is float else 'an int'}")
    return number


def _plain(said: Contribution) -> Contribution:
    """With its figures as Python's own."""
    metrics = {str(name): _number(float, f"the metric {name} of its contribution", value) for name, value in said.metrics.items()}
    loss = _number(float, "the loss of its contribution", said.loss)
    return Contribution(said.tensors, loss, _number(int, "the samples of its contribution", said.samples), metrics)


class Trainer:
    """One learner and its thread. `iteration` counts over the agent's whole life, restored ones included.

    in_thread: called once in that thread, before anything else. turns: None where iterations need not wait for one.
    """

    def __init__(self, checkpoint_every: int, in_thread: Callable[[], None] = lambda: None, turns: Turns | None = None) -> None:
        self._learner: Learner | None = None
        self._checkpoint_every = checkpoint_every
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainer", initializer=in_thread)
        self._turns = turns
        self._yielding = False
        self.first_began_unix_s: float | None = None
        self.first_iterated_unix_s: float | None = None
        """When this life began its first iteration, and when it had done it."""
        self._stop = threading.Event()
        self.phase: Phase | None = None
        self.round = -1
        self.theta = b""
        """The digest of what the job began from."""
        self.done = 0
        self.total = 0
        self.iteration = 0
        self.loss: float | None = None
        self.snapshot_s = 0.0
        """What the last snapshot took."""
        self.pause_s = 0.0
        """The same without the time in which the thread could run and others had the processors: training has to wait then in any case."""

    @property
    def learner(self) -> Learner:
        assert self._learner is not None, "load() comes first"
        return self._learner

    async def load(self, factory: Callable[[], Learner]) -> None:
        """Build the learner, in the thread that will drive it. What the factory raises is raised here."""
        self._learner = await asyncio.get_running_loop().run_in_executor(self._thread, _tidily, factory)

    def holds(self, phase: Phase, round_number: int, theta: bytes) -> bool:
        """Is this job, from the theta of this digest, begun or restored, and not at its end?"""
        return (self.phase, self.round, self.theta) == (phase, round_number, theta) and self.done < self.total

    async def initial_parameters(self, seed: int) -> Tensors:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _tidily, asked, self.learner, "initial_parameters", seed)

    async def restore(self, snapshot: Snapshot) -> None:
        """Become what the snapshot says."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, _tidily, asked, self.learner, "restore", snapshot.tensors, snapshot.extra)
        self.phase, self.round, self.theta = snapshot.phase, snapshot.round, snapshot.theta
        self.done, self.total = snapshot.done, snapshot.total
        self.iteration, self.loss = snapshot.iteration, snapshot.loss

    async def run(
        self, job: Job, theta: Tensors | None, digest: bytes, on_snapshot: Callable[[Snapshot], None] | None
    ) -> tuple[Contribution, Snapshot] | None:
        """Do `job` from theta, which has this digest, or go on with it where theta is None; None where it was stopped.

        `on_snapshot` is called on the event loop, every `checkpoint_every` iterations but the last.
        """
        self._stop.clear()
        loop = asyncio.get_running_loop()

        def tell(snapshot: Snapshot) -> None:
            if on_snapshot is not None:
                loop.call_soon_threadsafe(on_snapshot, snapshot)

        return await loop.run_in_executor(self._thread, _tidily, self._work, job, theta, digest, tell)

    def _work(
        self, job: Job, theta: Tensors | None, digest: bytes, tell: Callable[[Snapshot], None]
    ) -> tuple[Contribution, Snapshot] | None:
        try:
            if theta is not None:
                self._in_turn()
                self.total = _number(int, "what begin() returned", asked(self.learner, "begin", job, theta))
                self.phase, self.round, self.theta, self.done = job.kind, job.round, digest, 0
            while self.done < self.total:
                self._in_turn()
                if self._stop.is_set():
                    return None
                self.first_began_unix_s = self.first_began_unix_s or time.time()
                self.loss = _number(float, "what step() returned", asked(self.learner, "step"))
                self.first_iterated_unix_s = self.first_iterated_unix_s or time.time()
                self.done += 1
                self.iteration += 1
                if not self._yielding:
                    _yield_to_heartbeats()
                    self._yielding = True
                if self.iteration % self._checkpoint_every == 0 and self.done < self.total:
                    tell(self._snapshot())
            return _plain(contribution_of(self.learner)), self._snapshot()
        finally:
            if self._turns is not None:
                self._turns.end()

    def _in_turn(self) -> None:
        """Wait for this agent's turn, or go on in it."""
        if self._turns is not None and self._yielding:
            self._turns.go_on()

    def _snapshot(self) -> Snapshot:
        began, waited = time.perf_counter(), _waited_s()
        tensors, extra = state_of(self.learner)
        waited = _waited_s() - waited
        self.snapshot_s = time.perf_counter() - began
        self.pause_s = self.snapshot_s - waited
        assert self.phase is not None
        return Snapshot(self.phase, self.round, self.theta, self.done, self.total, self.iteration, self.loss, tensors, extra)

    def stop(self) -> None:
        """End the job under way after its present iteration."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and let the thread end."""
        self.stop()
        self._thread.shutdown(wait=False)
