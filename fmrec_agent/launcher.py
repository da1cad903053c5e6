"""The launcher: N agents, each a process of its own, from one parent that has torch imported already.

Importing torch takes seconds and 200 MiB; a fork of a process that has done so takes milliseconds and shares the pages. So this
parent warms itself up, forks once for each agent, and stays single-threaded without an event loop, so that it can fork again: an
agent that dies is there again before anybody misses it (`restart = "on-failure"`).

The parent is no point of loss: agents go on when it dies; only nobody restarts them then.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import select
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from fmrec_agent.daemon import AgentDaemon
from fmrec_agent.learning.learner import LearnerError
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.settings import AgentSettings
from protocol.aio.process import FAILED, FINE, INTERRUPTED, USAGE, UserError, run, set_up_logging
from protocol.identifiers import NodeId, Peer
from protocol.wire.codec import prepare

log = logging.getLogger("fmrec.launcher")

READY_POLL_S = 0.02
"""How often to look, while an agent starts, whether it listens."""
LEAVE_TIMEOUT_S = 10.0
SIGNALS = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Child:
    """One agent's process, through all its lives. died: when its lives ended, monotonic seconds, within the last minute.

    ready: the pipe on which it says once that it listens; None after that.
    """

    index: int
    pid: int = 0
    ready: int | None = None
    died: deque[float] = field(default_factory=deque)


def launch(settings: AgentSettings) -> int:
    """Run the agents of these settings until they end or are interrupted; the exit code."""
    set_up_logging(settings.log_level)
    if settings.count == 1 and settings.restart == "no":
        return run(AgentDaemon(settings, 0, lambda peer: _say(_row(settings, 0, os.getpid(), peer))).run)
    return Launcher(settings).run()


def _say(line: str) -> None:
    print(line, flush=True)


def _row(settings: AgentSettings, index: int, pid: int, peer: Peer) -> str:
    return f"{settings.name_of(index):20} {settings.role_of(index):8} {peer.id!s:32} {pid:>8} {peer.port:>6}"


HEADER = f"{'name':20} {'role':8} {'agentId':32} {'pid':>8} {'port':>6}"


class Launcher:
    """The parent of the agents of one `fmrec-agent start --count N`."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._children: dict[int, Child] = {}
        self._code = FINE

    def run(self) -> int:
        """Start all, restart those that die where that is asked, until none is left; the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        _warm_up(self._settings)
        _say(HEADER)
        for index in range(self._settings.count):
            self._start(Child(index))
        leaving = False
        deadline: float | None = None
        while self._children:
            caught = signal.sigtimedwait(SIGNALS, self._patience_s(deadline))
            self._announce()
            if caught is not None and caught.si_signo in (signal.SIGINT, signal.SIGTERM):
                self._code = INTERRUPTED if caught.si_signo == signal.SIGINT else self._code
                leaving, deadline = True, time.monotonic() + LEAVE_TIMEOUT_S
                self._signal_all(signal.SIGTERM)
            elif deadline is not None and time.monotonic() >= deadline:
                self._signal_all(signal.SIGKILL)
                deadline = None
            self._reap(leaving)
        return self._code

    def _patience_s(self, deadline: float | None) -> float:
        """How long to wait for a signal."""
        starting = any(child.ready is not None for child in self._children.values())
        left_s = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        return min(left_s, READY_POLL_S) if starting else left_s

    # --- children -----------------------------------------------------------------------------------------------------

    def _start(self, child: Child) -> None:
        """Fork: the child runs its agent and never returns here."""
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os._exit(_be_agent(self._settings, child.index, writer))
        os.close(writer)
        child.pid, child.ready = pid, reader
        self._children[pid] = child

    def _announce(self) -> None:
        """A row of the table for each agent that listens now."""
        starting = {child.ready: child for child in self._children.values() if child.ready is not None}
        poll = select.poll()
        for ready in starting:
            poll.register(ready, select.POLLIN)
        for ready, _ in poll.poll(0):
            child, line = starting[ready], os.read(ready, 4096)
            os.close(ready)
            child.ready = None
            if line:
                told = json.loads(line)
                peer = Peer(NodeId(told["id"]), told["host"], told["port"], told["incarnation"])
                _say(_row(self._settings, child.index, child.pid, peer))

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            os.kill(pid, number)

    def _reap(self, leaving: bool) -> None:
        """Bury who has died, and start it again where that is asked."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:
                continue
            if child.ready is not None:
                os.close(child.ready)
                child.ready = None
            name, code = self._settings.name_of(child.index), os.waitstatus_to_exitcode(status)
            if code in (FINE, INTERRUPTED) or leaving:
                continue
            if code == USAGE:
                # It has said why in a sentence, and would end in the same way again.
                self._code = FAILED
                continue
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            if self._settings.restart == "on-failure" and self._may_restart(child):
                self._start(child)
                log.warning("%s (pid %d) %s; started again as pid %d", name, pid, how, child.pid)
            else:
                log.error("%s (pid %d) %s", name, pid, how)
                self._code = FAILED

    def _may_restart(self, child: Child) -> bool:
        now = time.monotonic()
        child.died.append(now)
        while child.died[0] < now - 60:
            child.died.popleft()
        if len(child.died) <= self._settings.restarts_max:
            return True
        log.error("%s died %d times within a minute: left dead", self._settings.name_of(child.index), len(child.died))
        return False


def _warm_up(settings: AgentSettings) -> None:
    """Do once what every agent would do for itself, single-threaded, and keep the collector from touching (and so copying) those
    pages: import torch, make the validators, build one learner of each role. No backward pass and no CUDA: neither autograd nor a
    GPU's context survives a fork.
    """
    import safetensors.numpy  # noqa: F401
    import torch

    torch.set_num_threads(1)
    prepare()
    learning = settings.learning.model_copy(update={"device": "cpu"})
    for role in sorted({settings.role_of(index) for index in range(settings.count)}):
        with contextlib.suppress(LearnerError):  # each agent says it of itself
            load_learner(learning, name=settings.name, role=role, index=0).initial_parameters(0)
    gc.collect()
    gc.freeze()


def _be_agent(settings: AgentSettings, index: int, writer: int) -> int:
    """In the child: the agent's whole life; the exit code, which is USAGE for what a user must mend: a restart would not."""

    def ready(peer: Peer) -> None:
        os.write(writer, json.dumps({"id": int(peer.id), "host": peer.host, "port": peer.port, "incarnation": peer.incarnation}).encode())
        os.close(writer)

    async def main(stop: asyncio.Event) -> int:
        try:
            return await AgentDaemon(settings, index, ready).run(stop)
        except UserError as error:
            print(f"error: {settings.name_of(index)}: {error}", file=sys.stderr)
            return USAGE

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return run(main)
    except KeyboardInterrupt:  # before run() could see it
        return INTERRUPTED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
