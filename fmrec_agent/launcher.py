"""The launcher: N agents, each a process of its own, from one parent that has torch imported already.

Importing torch takes seconds and 200 MiB; a fork of a process that has done so takes milliseconds and shares the pages. So this
parent warms itself up, forks once for each agent, and stays single-threaded without an event loop, so that it can fork again: an
agent that dies is there again before anybody misses it (`restart = "on-failure"`).

What it waits for are signals, which are blocked. numpy has started threads before that, which take a signal where the main thread is not
waiting: they hand it over (`_hand_over`). What is run while it warms up may be a stranger's and have no end: meanwhile SIGINT and SIGTERM
end it at once (`_interruptible`).

Each child keeps the end of a pipe, its life line. On it the child says that it listens, and that it ends of its own accord; where it
breaks without that word, the child was killed. This is known a tenth of a second before the kernel has taken the process apart, and its
last thread was given a turn to die. SIGIO tells of the pipe, as SIGCHLD of the process: one wait for both.

The parent is no point of loss: agents go on when it dies; only nobody restarts them then. So it does not die of what can be done without:
a table that nobody reads any more, or a restart for which there is no process or descriptor left, which is tried again later. Where
there is no room for all from the beginning, those that were started are ended in order, and that is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import TextIO

from fmrec_agent.daemon import AgentDaemon, MayPass
from fmrec_agent.descriptors import keep_own_descriptors
from fmrec_agent.high_water import HighWater, high_water_of
from fmrec_agent.learning.learner import Job, Learner, Tensors
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.settings import AgentSettings
from fmrec_agent.turns import Turns
from protocol.aio.process import FAILED, FINE, INTERRUPTED, USAGE, UserError, run, set_up_logging
from protocol.identifiers import NodeId, Peer
from protocol.wire.codec import prepare

log = logging.getLogger("fmrec.launcher")

LEAVE_TIMEOUT_S = 10.0
ASKED = (signal.SIGINT, signal.SIGTERM)
SIGNALS = (signal.SIGCHLD, signal.SIGIO, *ASKED)
LOOK_S = 1.0
"""A signal that another thread took in the very moment before the wait is seen after this."""
TRIAL_S = 10
"""A first iteration that takes longer is no start that agents could be spared."""
FAREWELL = b"ends\n"
AGAIN_S = 5.0
"""Who could not be started again is tried once more after this; each try counts as a death."""


@dataclass(slots=True)
class Child:
    """One agent's process, through all its lives. died: when its lives ended, monotonic seconds, within the last minute.

    line: our end of its life line; None once that has ended. ends: it has said that it ends of its own accord.
    """

    index: int
    pid: int = 0
    line: int | None = None
    ends: bool = False
    died: deque[float] = field(default_factory=deque)


def launch(settings: AgentSettings) -> int:
    """Run the agents of these settings until they end or are interrupted; the exit code. UserError where they cannot all be started.

    One that nobody would start again is this process, which ends here: the interpreter would wait for a learner in an endless iteration.
    """
    set_up_logging(settings.log_level)
    if settings.count == 1 and settings.restart == "no":
        code = run(AgentDaemon(settings, 0, lambda peer: _say(_row(settings, 0, os.getpid(), peer)), keep_own_descriptors).run)
        _flush()
        os._exit(code)
    return Launcher(settings).run()


def _say(line: str, to: TextIO | None = None) -> None:
    """On stdout, where nothing else is said; to nobody, where its reader is gone or its disk full."""
    with contextlib.suppress(OSError):
        print(line, file=to, flush=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            print(end="", file=stream, flush=True)


def _row(settings: AgentSettings, index: int, pid: int, peer: Peer) -> str:
    return f"{settings.name_of(index):20} {settings.role_of(index):8} {peer.id!s:32} {pid:>8} {peer.port:>6}"


HEADER = f"{'name':20} {'role':8} {'agentId':32} {'pid':>8} {'port':>6}"


class Launcher:
    """The parent of the agents of one `fmrec-agent start --count N`."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        processors = len(os.sched_getaffinity(0))
        self._turns = Turns(processors) if settings.count > processors else None
        self._high_water = high_water_of(settings.count)
        self._children: dict[int, Child] = {}
        self._followed: dict[int, tuple[Child, int, int]] = {}
        """Pids of lives that were killed: the child, the pid of the next one, 0 where it is to be begun later, and which version was
        durable; until the kernel says how they ended."""
        self._later: deque[tuple[float, Child]] = deque()
        """Who could not be started again, and when that is tried once more, monotonic seconds."""
        self._leaving = False
        self._deadline: float | None = None
        """When those that do not leave are killed."""
        self._code = FINE

    def run(self) -> int:
        """Start all, restart those that die where that is asked, until none is left; the exit code. UserError as launch()."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for number in SIGNALS:
            signal.signal(number, _hand_over)
        _warm_up(self._settings)
        _say(HEADER)
        refused = self._start_all()
        while self._children or self._later:
            caught = signal.sigtimedwait(SIGNALS, self._patience_s())
            self._listen()
            if caught is not None and caught.si_signo in (signal.SIGINT, signal.SIGTERM):
                self._code = INTERRUPTED if caught.si_signo == signal.SIGINT else self._code
                self._leave()
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self._signal_all(signal.SIGKILL)
                self._deadline = None
            self._reap()
            self._start_later_ones()
        if refused is not None:
            raise refused
        return self._code

    def _leave(self) -> None:
        """Have all end in order, with a bound."""
        self._leaving, self._deadline = True, time.monotonic() + LEAVE_TIMEOUT_S
        self._later.clear()
        self._signal_all(signal.SIGTERM)

    def _patience_s(self) -> float:
        """How long to wait for a signal."""
        due = [self._later[0][0]] if self._later else []
        due += [self._deadline] if self._deadline is not None else []
        return min(LOOK_S, max(0.0, min(due) - time.monotonic())) if due else LOOK_S

    # --- children -----------------------------------------------------------------------------------------------------

    def _start_all(self) -> UserError | None:
        """The first life of each agent; why not, where there is no room for one: those before it leave then."""
        for index in range(self._settings.count):
            try:
                self._start(Child(index))
            except OSError as error:
                self._leave()
                return UserError(
                    f"{self._settings.name_of(index)} cannot be started ({error.strerror}): start fewer agents with --count, "
                    "or raise what this shell may have (ulimit -n, ulimit -u)"
                )
        return None

    def _start(self, child: Child) -> None:
        """Fork: the child runs its agent and never returns here. OSError, and nothing has changed, where the system has no room for it."""
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        _flush()
        try:
            pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if pid == 0:
            for line in (reader, *self._lines()):
                os.close(line)
            os._exit(_be_agent(self._settings, child.index, writer, self._turns, self._high_water[child.index]))
        os.close(writer)
        child.pid, child.line, child.ends = pid, reader, False
        self._children[pid] = child

    def _restart(self, child: Child) -> int:
        """The pid of its next life; 0 where it can only be begun later."""
        try:
            self._start(child)
        except OSError as error:
            name = self._settings.name_of(child.index)
            log.error("%s cannot be started again (%s): trying again in %.0f s", name, error.strerror, AGAIN_S)
            self._later.append((time.monotonic() + AGAIN_S, child))
            return 0
        return child.pid

    def _start_later_ones(self) -> None:
        """Those whose time has come."""
        while self._later and self._later[0][0] <= time.monotonic():
            _, child = self._later.popleft()
            if not self._may_restart(child):
                self._code = FAILED
            elif pid := self._restart(child):
                log.warning("%s is started again as pid %d", self._settings.name_of(child.index), pid)

    def _listen(self) -> None:
        """What the children have said: a row of the table for each that listens; and who was killed is started again."""
        lines = self._lines()
        poll = select.poll()
        for line in lines:
            poll.register(line, select.POLLIN)
        for line, _ in poll.poll(0):
            child = lines[line]
            said, broken = _read(line)
            for word in said.splitlines(keepends=True):
                if word == FAREWELL:
                    child.ends = True
                else:
                    told = json.loads(word)
                    peer = Peer(NodeId(told["id"]), told["host"], told["port"], told["incarnation"])
                    _say(_row(self._settings, child.index, child.pid, peer))
            if broken:
                self._hang_up(child)
                if not (child.ends or self._leaving) and self._may_restart(child):
                    dead = child.pid
                    del self._children[dead]
                    durable = self._high_water[child.index].durable
                    self._followed[dead] = child, self._restart(child), durable

    def _lines(self) -> dict[int, Child]:
        """Our ends of the life lines."""
        return {child.line: child for child in self._children.values() if child.line is not None}

    def _hang_up(self, child: Child) -> None:
        if child.line is not None:
            os.close(child.line)
            child.line = None

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            os.kill(pid, number)

    def _reap(self) -> None:
        """Bury who has died, say how, and start it again where that is asked and not done yet."""
        while self._children or self._followed:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            child, follower, durable = self._followed.pop(pid, (self._children.get(pid), None, 0))
            if child is None:
                continue
            if follower is None:
                durable = self._high_water[child.index].durable
                del self._children[pid]
                judged = child.line is None and not child.ends
                self._hang_up(child)
                if code in (FINE, INTERRUPTED) or self._leaving:
                    continue
                if code == USAGE:
                    # It has said why in a sentence, and would end in the same way again.
                    self._code = FAILED
                    continue
                if not judged and self._may_restart(child):
                    follower = self._restart(child)
            name = self._settings.name_of(child.index)
            if follower is not None:
                again = f"started again as pid {follower}" if follower else "not started again yet"
                log.warning("%s (pid %d) %s, version %d durable; %s", name, pid, how, durable, again)
            else:
                log.error("%s (pid %d) %s", name, pid, how)
                self._code = FAILED

    def _may_restart(self, child: Child) -> bool:
        if self._settings.restart == "no":
            return False
        now = time.monotonic()
        child.died.append(now)
        while child.died[0] < now - 60:
            child.died.popleft()
        if len(child.died) <= self._settings.restarts_max:
            return True
        log.error("%s died %d times within a minute: left dead", self._settings.name_of(child.index), len(child.died))
        return False


def _read(line: int) -> tuple[bytes, bool]:
    """All that there is to read; and whether the line is broken."""
    said = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(line, 4096):
            said += part
        return said, True
    return said, False


def _warm_up(settings: AgentSettings) -> None:
    """Do once what every agent would do for itself, single-threaded, and keep the collector from touching (and so copying) those
    pages: import torch, make the validators, build one learner of each role, and iterate once on the CPU, for the first time takes longest:
    in no GPU's context, which would not survive a fork, and not at all where what it leaves would not.
    """
    with _interruptible():
        import torch

        torch.set_num_threads(1)
        "localhost".encode("idna")  # what asking for a host's address imports
        prepare()
    learning = settings.learning.model_copy(update={"device": "cpu"})
    for role in sorted({settings.role_of(index) for index in range(settings.count)}):
        with contextlib.suppress(Exception, SystemExit):  # each agent says it of itself
            with _interruptible():
                learner = load_learner(learning, name=settings.name, role=role, index=0)
                theta = learner.initial_parameters(0)
            iterate = partial(_iterate, learner, theta)
            if _forks_iterate(iterate):
                with _interruptible():
                    iterate()
    gc.collect()
    gc.freeze()


def _hand_over(number: int, frame: FrameType | None) -> None:
    """To the main thread, where this signal is blocked: it is there when that waits for it."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, number)


@contextmanager
def _interruptible(trial: int = 0) -> Iterator[None]:
    """SIGINT and SIGTERM, which are blocked before and afterwards, end this process meanwhile, and the trial of this pid with it. It is
    not done by an exception: who is interrupted is a stranger, who may catch it.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if trial:
            _end_trial(trial)
        with contextlib.suppress(RuntimeError):  # it was being flushed
            _flush()
        os._exit(INTERRUPTED if number == signal.SIGINT else FINE)

    handlers = {number: signal.signal(number, end) for number in ASKED}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end_trial(pid: int) -> None:
    """Kill it, and then whom it has forked: it leads a session of its own, or has forked nobody yet."""
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _iterate(learner: Learner, theta: Tensors) -> None:
    learner.begin(Job("train" if learner.role == "source" else "adapt", 0, 0), theta)
    learner.step()


def _forks_iterate(iterate: Callable[[], None]) -> bool:
    """Can forks of a process that has iterated do so, too? Tried with a fork and a fork of it: where there is a GPU, autograd has threads,
    which a fork has not; and a learner may have some of its own. Called where SIGINT and SIGTERM are blocked.
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            signal.alarm(TRIAL_S)
            iterate()
            pid = os.fork()
            if pid == 0:
                signal.alarm(TRIAL_S)
                iterate()
                os._exit(FINE)
            _, status = os.waitpid(pid, 0)
            os._exit(FINE if status == 0 else FAILED)
        finally:
            os._exit(FAILED)
    with _interruptible(pid):
        _, status = os.waitpid(pid, 0)
    return status == 0


def _be_agent(settings: AgentSettings, index: int, writer: int, turns: Turns | None, high_water: HighWater) -> int:
    """In the child: the agent's whole life; the exit code, which is USAGE for what a user must mend: a restart would not,
    where it is no MayPass."""

    def ready(peer: Peer) -> None:
        told = {"id": int(peer.id), "host": peer.host, "port": peer.port, "incarnation": peer.incarnation}
        with contextlib.suppress(BrokenPipeError):  # the launcher may be gone
            os.write(writer, json.dumps(told).encode() + b"\n")

    async def main(stop: asyncio.Event) -> int:
        try:
            in_training_thread = partial(keep_own_descriptors, without=writer)
            return await AgentDaemon(settings, index, ready, in_training_thread, turns, high_water).run(stop)
        except UserError as error:
            _say(f"error: {settings.name_of(index)}: {error}", sys.stderr)
            return FAILED if isinstance(error, MayPass) else USAGE

    try:
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return run(main)
    except KeyboardInterrupt:  # before run() could see it
        return INTERRUPTED
    finally:
        _flush()
        with contextlib.suppress(BrokenPipeError):
            os.write(writer, FAREWELL)
