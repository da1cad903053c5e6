"""Exit codes, signals, and errors in one sentence, as a shell sees them."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import protocol
from protocol.aio import process
from protocol.aio.connections import Connections
from protocol.aio.process import UserError, check_identity, listen_port, try_port
from protocol.parameters import OverlayParameters

ROOT = Path(__file__).resolve().parents[2]
OPENING = """
import asyncio, sys
from protocol.aio.process import *
set_up_logging("info")
logger = __import__("logging").getLogger("test")
"""


def started(body: str) -> subprocess.Popen[str]:
    code = OPENING + textwrap.dedent(body) + "\nsys.exit(run(main))"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def ended(body: str) -> tuple[int, str]:
    with started(body) as child:
        _, said = child.communicate(timeout=30)
    return child.returncode, said


def test_fine() -> None:
    code, said = ended("""
        async def main(stop):
            logger.info("up")
        """)
    assert code == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO    test up\n", said)


def test_an_error_that_a_user_can_mend() -> None:
    assert ended("""
        async def main(stop):
            raise UserError("port 7700 is in use: choose another")
        """) == (1, "error: port 7700 is in use: choose another\n")


def test_a_mistake_of_ours_has_its_traceback() -> None:
    code, said = ended("""
        async def main(stop):
            return [][1]
        """)
    assert code == 1
    assert "please report it" in said
    assert "IndexError" in said


LEAVES = """
    async def main(stop):
        print("up", flush=True)
        await stop.wait()
        print("left", flush=True)
    """
STAYS = """
    async def main(stop):
        print("up", flush=True)
        await stop.wait()
        print("stays", flush=True)
        await asyncio.Event().wait()
    """


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_asks_to_leave(number: signal.Signals, code: int) -> None:
    with started(LEAVES) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        child.send_signal(number)
        assert child.stdout.readline() == "left\n"
        assert child.wait(30) == code


def test_a_second_signal_insists() -> None:
    with started(STAYS) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "stays\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130


def test_a_parent_that_passes_an_interrupt_on_does_not_insist() -> None:
    """Ctrl-C reaches the whole process group as SIGINT, and the launcher sends SIGTERM to its agents besides."""
    slow = """
    async def main(stop):
        print("up", flush=True)
        await stop.wait()
        print("leaving", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print("left", flush=True)
    """
    with started(slow) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "up\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "leaving\n"
        child.send_signal(signal.SIGTERM)
        child.stdin.write("go on\n")
        child.stdin.flush()
        assert child.stdout.readline() == "left\n"
        assert child.wait(30) == 130


def test_a_foreign_package_named_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_identity()
    monkeypatch.setattr(protocol, "IDENTITY", "something else")
    with pytest.raises(UserError, match=re.escape(str(protocol.__file__))):
        check_identity()


async def test_a_port_in_use_is_one_sentence(free_port: Callable[[], int]) -> None:
    port = free_port()
    first, second = Connections("c", OverlayParameters()), Connections("c", OverlayParameters())
    assert (await listen_port(first, "127.0.0.1", port)).port == port
    with pytest.raises(UserError) as caught:
        await listen_port(second, "127.0.0.1", port)
    assert str(caught.value) == f"port {port} on 127.0.0.1 is in use: stop what listens there or choose another with --listen"
    await first.close()
    await second.close()


async def test_a_port_that_is_about_to_be_left_is_waited_for_a_while(free_port: Callable[[], int]) -> None:
    port = free_port()
    leaving = Connections("c", OverlayParameters())
    await listen_port(leaving, "127.0.0.1", port)
    with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is in use"):
        await try_port("127.0.0.1", port, within_s=0.0)
    tried = asyncio.create_task(try_port("127.0.0.1", port, within_s=60.0))
    await asyncio.wait({tried}, timeout=5 * process.PORT_AGAIN_S)
    assert not tried.done()
    await leaving.close()
    await tried
    stays = Connections("c", OverlayParameters())
    assert (await listen_port(stays, "127.0.0.1", port)).port == port, "nothing is left on it"
    await stays.close()


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("192.0.2.1", 7700), ("no.such.host.invalid", 7700)])
async def test_an_address_that_is_not_ours_is_one_sentence(host: str, port: int) -> None:
    connections = Connections("c", OverlayParameters())
    with pytest.raises(UserError, match=f"port {port} on "):
        await listen_port(connections, host, port)
    await connections.close()


def test_exit_codes() -> None:
    assert (process.FINE, process.FAILED, process.USAGE, process.INTERRUPTED) == (0, 1, 2, 130)
