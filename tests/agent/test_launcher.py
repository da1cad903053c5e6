"""`fmrec-agent start --count N` as a real command, without any manager: its table, its restarts, its end, and its sentences."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmrec_agent.daemon import MayPass
from fmrec_agent.high_water import HighWater
from fmrec_agent.launcher import ASKED, Child, Launcher, _be_agent, _forks_iterate, _hand_over
from fmrec_agent.settings import AgentSettings
from protocol.aio.process import UserError
from protocol.aio.status_client import request_status
from protocol.identifiers import Address, agent_id
from tests.agent.ring import free_port

COMMAND = [sys.executable, "-c", "import sys; from fmrec_agent.cli import main; sys.exit(main())", "start"]


def alive(pid: int) -> bool:
    """Is there such a process, and not as a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def group(leader: int) -> list[int]:
    """Who is alive of the processes that this one has started, itself among them."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if alive(pid) and os.getpgid(pid) == leader]


def pipes(pid: int) -> int:
    """How many of its descriptors are of pipes."""
    return sum(os.readlink(path).startswith("pipe:") for path in Path(f"/proc/{pid}/fd").iterdir())


@dataclass
class Started:
    """One running command; what it prints is read as it comes."""

    process: subprocess.Popen[str]
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            if stream is not None:
                threading.Thread(target=lambda s=stream, kept=lines: kept.extend(iter(s.readline, "")), daemon=True).start()

    def until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """What the condition gives once it gives something."""
        end = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < end, f"not within {timeout_s} s; printed:\n{''.join([*self.out, *self.err])}"
            time.sleep(0.02)
        return found

    def rows(self) -> list[list[str]]:
        """The table without its head: name, role, agentId, pid, port."""
        return [line.split() for line in self.out[1:]]

    def pids(self) -> list[int]:
        return [int(row[3]) for row in self.rows()]

    def ended(self, timeout_s: float = 60.0) -> int:
        code = self.process.wait(timeout_s)
        self.until(lambda: not group(self.process.pid))
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """start(*arguments) -> the running command; whatever is left of it at the end is killed by its group."""
    running: list[Started] = []
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FMREC_")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])

    def start(*arguments: str, stdout: int = subprocess.PIPE, descriptors_max: int = 1024) -> Started:
        limit = ["prlimit", f"--nofile={descriptors_max}"]
        process = subprocess.Popen(
            [*limit, *COMMAND, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env=environment, start_new_session=True,
        )  # fmt: skip
        running.append(Started(process))
        return running[-1]

    yield start
    for command in running:
        if group(command.process.pid):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait()
        for stream in (command.process.stdout, command.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def two_ports() -> int:
    """The first of two neighbouring ports that are free."""
    while True:
        first, second = free_port(), free_port()
        if second == first + 1:
            return first


def errors(command: Started) -> list[str]:
    return [line.strip() for line in command.err if line.startswith("error: ")]


def status(port: int) -> dict[str, Any]:
    return asyncio.run(request_status(Address("127.0.0.1", port), "fmrec", 10))


def answering(port: int, but: int = 0) -> int:
    """The pid of the agent that answers there, where it is another one than `but`; else 0."""
    try:
        pid = int(status(port)["pid"])
    except UserError:
        return 0
    return pid if pid != but else 0


def test_the_life_of_two_agents(start: Callable[..., Started], two_ports: int) -> None:
    """Their table; a kill and the restart under the same name and port; the seed that nobody is at; Ctrl-C."""
    nobody = free_port()
    command = start("--count", "2", "--restart", "on-failure", "--listen", f"127.0.0.1:{two_ports}", "--join", f"127.0.0.1:{nobody}")
    command.until(lambda: len(command.rows()) == 2)
    assert command.out[0].split() == ["name", "role", "agentId", "pid", "port"]
    rows = {row[0]: row for row in command.rows()}
    for index in (0, 1):
        name, role, identifier, pid, port = rows[f"agent-{index}"]
        assert (role, identifier, port) == ("source", str(agent_id("fmrec", name)), str(two_ports + index))
        assert alive(int(pid))
    command.until(lambda: f"no seed is reachable (tried 127.0.0.1:{nobody})" in "".join(command.err))

    assert pipes(int(rows["agent-0"][3])) == pipes(int(rows["agent-1"][3])), "no agent holds the life lines of others"
    before, killed = status(two_ports)["incarnation"], int(rows["agent-0"][3])
    os.kill(killed, signal.SIGKILL)
    command.until(lambda: len(command.rows()) == 3, 20)
    again = command.rows()[2]
    assert (again[0], again[2], again[4]) == (rows["agent-0"][0], rows["agent-0"][2], rows["agent-0"][4])
    assert int(again[3]) != killed
    assert status(two_ports)["incarnation"] > before
    said = next(line for line in command.err if "started again" in line)
    assert f"agent-0 (pid {killed}) was killed by SIGKILL, version 0 durable; started again as pid {again[3]}" in said

    command.process.send_signal(signal.SIGINT)
    assert command.ended() == 130
    assert "Traceback" not in "".join(command.err)


def test_a_port_in_use_is_a_sentence_and_no_reason_to_try_again(start: Callable[..., Started], two_ports: int) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", two_ports))
        taken.listen()
        command = start("--restart", "on-failure", "--listen", f"127.0.0.1:{two_ports}")
        assert command.ended() == 1
    (line,) = command.until(lambda: errors(command))
    assert line == f"error: agent: port {two_ports} on 127.0.0.1 is in use: stop what listens there or choose another with --listen"
    assert command.rows() == []
    assert "started again" not in "".join(command.err)
    assert "Traceback" not in "".join(command.err)


def test_a_learner_that_cannot_be_built_is_a_sentence_and_not_restarted(start: Callable[..., Started]) -> None:
    command = start("--count", "2", "--restart", "on-failure", "--set", "learning.task.data=/nowhere")
    assert command.ended() == 1
    command.until(lambda: len(errors(command)) == 2)
    assert all("there is no folder /nowhere" in line for line in errors(command))
    assert "started again" not in "".join(command.err)
    assert "Traceback" not in "".join(command.err)


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (MayPass, 1)])
def test_who_may_be_spared_what_ended_its_life_is_started_again(
    error: type[UserError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 2 is for what would end the next life in the same way."""

    async def run(stop: asyncio.Event) -> int:
        raise error("agent cannot go on learning")

    monkeypatch.setattr("fmrec_agent.launcher.AgentDaemon", lambda *arguments: SimpleNamespace(run=run))
    reads, writes = os.pipe()
    assert _be_agent(AgentSettings(), 0, writes, None, HighWater()) == code
    os.close(reads)
    os.close(writes)
    assert capsys.readouterr().err == "error: agent: agent cannot go on learning\n"


def test_what_fails_in_the_launchers_warm_up_is_left_to_each_agent(start: Callable[..., Started], two_ports: int) -> None:
    """Agents of this learner would live: nobody asks them for theta_0."""
    learner = ["--set", "learning.learner=tests.agent.counting:thetaless"]
    command = start("--count", "2", "--listen", f"127.0.0.1:{two_ports}", *learner)
    command.until(lambda: len(command.rows()) == 2)
    command.process.send_signal(signal.SIGTERM)
    assert command.ended() == 0


def test_a_stop_during_the_start_is_obeyed(start: Callable[..., Started]) -> None:
    """The head of the table is out, the agents are not there yet; nobody waits for them to be."""
    command = start("--count", "2", "--listen", f"127.0.0.1:{free_port()}")
    command.until(lambda: command.out)
    command.process.send_signal(signal.SIGTERM)
    assert command.ended(20) == 0
    assert "Traceback" not in "".join(command.err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_learner_that_is_never_built_does_not_keep_the_launcher(
    start: Callable[..., Started], number: signal.Signals, code: int, tmp_path: Path
) -> None:
    command = start("--count", "2", "--set", "learning.learner=tests.agent.counting:built_late")
    command.until(lambda: (tmp_path / f"building-{command.process.pid}").exists())
    command.process.send_signal(number)
    assert command.ended(5) == code
    assert (command.out, command.err) == ([], [])


def test_a_first_iteration_without_end_does_not_keep_the_launcher_and_nobody_who_tries_it_is_left(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    """It is tried in a fork, and in a fork of that, which have sessions of their own."""
    command = start("--count", "2", "--set", "learning.learner=tests.agent.counting:stepping_late")

    def trying() -> set[int]:
        return {int(path.name.partition("-")[2]) for path in tmp_path.glob("stepping-*") if not path.suffix}

    (first,) = command.until(trying)
    (tmp_path / f"stepping-{first}.go").touch()
    command.until(lambda: len(trying()) == 2)
    assert all(alive(pid) for pid in trying())
    command.process.send_signal(signal.SIGINT)
    assert command.ended(5) == 130
    command.until(lambda: not any(alive(pid) for pid in trying()), 5)
    assert "Traceback" not in "".join(command.err)


@pytest.mark.parametrize("to", ["nobody", "a full disk"])
def test_a_table_that_cannot_be_written_is_no_reason_to_restart_nobody(to: str, start: Callable[..., Started], two_ports: int) -> None:
    reads, writes = os.pipe()
    stdout = writes if to == "nobody" else os.open("/dev/full", os.O_WRONLY)
    command = start("--count", "2", "--restart", "on-failure", "--listen", f"127.0.0.1:{two_ports}", stdout=stdout)
    os.close(writes)
    if to == "nobody":
        with os.fdopen(reads) as table:
            head, *rows = [table.readline().split() for _ in range(3)]
        assert head[0] == "name"
        assert {row[0] for row in rows} == {"agent-0", "agent-1"}
    else:
        os.close(reads)
        os.close(stdout)
    first, second = (command.until(lambda port=port: answering(port)) for port in (two_ports, two_ports + 1))
    os.kill(first, signal.SIGKILL)
    command.until(lambda: answering(two_ports, but=first))
    assert answering(two_ports + 1) == second
    command.process.send_signal(signal.SIGTERM)
    assert command.ended() == 0
    assert "Traceback" not in "".join(command.err)
    assert "BrokenPipeError" not in "".join(command.err)


def test_where_there_is_no_room_for_all_none_is_left_and_that_is_said(start: Callable[..., Started]) -> None:
    command = start("--count", "40", "--listen", f"127.0.0.1:{free_port()}", descriptors_max=20)
    assert command.ended() == 1
    (line,) = [line for line in errors(command) if "cannot be started" in line]
    remedy = "start fewer agents with --count, or raise what this shell may have (ulimit -n, ulimit -u)"
    assert line.endswith(f" cannot be started (Too many open files): {remedy}")


def test_who_cannot_be_started_again_now_is_started_again_later(start: Callable[..., Started], two_ports: int) -> None:
    command = start("--count", "2", "--restart", "on-failure", "--listen", f"127.0.0.1:{two_ports}")
    command.until(lambda: len(command.rows()) == 2)
    launcher, first = command.process.pid, int(min(command.rows())[3])
    usual = resource.prlimit(launcher, resource.RLIMIT_NOFILE, (3, 1024))
    os.kill(first, signal.SIGKILL)
    command.until(lambda: "agent-0 cannot be started again (Too many open files)" in "".join(command.err))
    command.until(lambda: f"agent-0 (pid {first}) was killed by SIGKILL" in "".join(command.err))
    resource.prlimit(launcher, resource.RLIMIT_NOFILE, usual)
    command.until(lambda: len(command.rows()) == 3)
    assert answering(two_ports, but=first) == command.pids()[2]
    command.process.send_signal(signal.SIGTERM)
    assert command.ended() == 0


def test_an_agent_whose_launcher_is_killed_while_it_is_built_lives_on(
    start: Callable[..., Started], two_ports: int, tmp_path: Path
) -> None:
    learner = ["--set", "learning.learner=tests.agent.counting:built_late"]
    command = start("--restart", "on-failure", "--listen", f"127.0.0.1:{two_ports}", *learner)
    launcher = command.process.pid
    command.until(lambda: (tmp_path / f"building-{launcher}").exists())
    (tmp_path / f"building-{launcher}.go").touch()
    built = command.until(lambda: {path.name for path in tmp_path.glob("building-*")} - {f"building-{launcher}", f"building-{launcher}.go"})
    command.process.kill()
    command.process.wait()
    (tmp_path / f"{built.pop()}.go").touch()
    agent = command.until(lambda: answering(two_ports))
    os.kill(agent, signal.SIGTERM)
    command.until(lambda: not alive(agent))
    assert "Traceback" not in "".join(command.err)


def test_an_agent_that_dies_again_and_again_is_left_dead() -> None:
    """As often within a minute as restarts_max says it is started again; a minute later it may die again."""
    launcher, child = Launcher(AgentSettings(restart="on-failure", restarts_max=3)), Child(0)
    assert [launcher._may_restart(child) for _ in range(4)] == [True, True, True, False]
    child.died = deque(died - 61 for died in child.died)
    assert launcher._may_restart(child)


def test_who_is_left_dead_is_said_so_once_and_the_others_outlive_the_launcher(start: Callable[..., Started], two_ports: int) -> None:
    """Killed more often than restarts_max, an agent stays dead. Then the launcher is killed: the other agent can leave all the same."""
    command = start("--count", "2", "--restart", "on-failure", "--listen", f"127.0.0.1:{two_ports}", "--set", "restarts_max=1")
    command.until(lambda: len(command.rows()) == 2)
    first, other = (int(row[3]) for row in sorted(command.rows()))
    os.kill(first, signal.SIGKILL)
    command.until(lambda: len(command.rows()) == 3)
    second = int(command.rows()[2][3])
    os.kill(second, signal.SIGKILL)
    command.until(lambda: f"agent-0 (pid {second}) was killed by SIGKILL" in "".join(command.err))
    assert sum("left dead" in line for line in command.err) == 1
    assert len(command.rows()) == 3
    command.process.kill()
    command.process.wait()
    assert alive(other)
    os.kill(other, signal.SIGTERM)
    command.until(lambda: not alive(other))
    assert "Traceback" not in "".join(command.err)


def test_a_signal_that_another_thread_takes_is_handed_over_to_the_one_that_waits() -> None:
    """numpy's threads begin before the launcher blocks anything. SIGIO would end the process, and its agents were without a launcher."""
    usual = signal.signal(signal.SIGIO, _hand_over)

    def take() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGIO,))
        signal.pthread_kill(threading.get_ident(), signal.SIGIO)

    try:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGIO,))
        taking = threading.Thread(target=take)
        taking.start()
        taking.join()
        assert signal.sigtimedwait((signal.SIGIO,), 5) is not None
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    finally:
        signal.signal(signal.SIGIO, usual)


@pytest.fixture
def _blocked() -> Iterator[None]:
    """SIGINT and SIGTERM, as the launcher has them."""
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, usual)


@pytest.mark.usefixtures("_blocked")
@pytest.mark.parametrize(("breaks_at", "survives"), [(99, True), (1, False), (0, False)], ids=["always", "once", "never"])
def test_an_iteration_before_the_fork_is_tried_in_forks_of_their_own(breaks_at: int, survives: bool) -> None:
    """The first is the launcher's own, the second that of an agent; where either fails, each agent does its first iteration itself."""
    done: list[int] = []

    def iterate() -> None:
        if len(done) == breaks_at:
            raise RuntimeError("no threads left")
        done.append(1)

    assert _forks_iterate(iterate) is survives
    assert not done, "not in this process"
