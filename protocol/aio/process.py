"""What both daemons do alike: start on uvloop, be interrupted, and say what went wrong.

SIGTERM and SIGINT ask the program to leave in order, through an event; the same one again cancels it (Ctrl-C reaches a whole
process group, and a parent may pass it on as SIGTERM: that is one wish, not two). Exit codes: 0 fine (a SIGTERM
that was followed is fine), 1 failed, 2 usage, 130 interrupted from the keyboard. What a user can cause is a UserError: one
sentence that says what, where and what to do, and no traceback.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

import protocol
from protocol.aio.connections import Connections
from protocol.identifiers import Address

FINE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
PORT_AGAIN_S = 0.01
EXPECTED_IDENTITY = "fmrec-protocol"

logger = logging.getLogger(__name__)


class UserError(Exception):
    """Something that a user can cause and mend: one sentence, shown as `error: ...`; the process exits with 1."""


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, int | None]]) -> int:
    """Runs the program to its end and returns the process's exit code.

    main(stop) is the program: when `stop` is set, it leaves in order and returns. Its result, where not None, is the exit code.
    Called in the main thread, outside any event loop.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_supervised(main))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except Exception:
        logger.exception("this is a mistake in FMRec, please report it")
        return FAILED


async def _supervised(main: Callable[[asyncio.Event], Coroutine[Any, Any, int | None]]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    program = loop.create_task(main(stop))
    seen: set[signal.Signals] = set()

    def asked(number: signal.Signals) -> None:
        if number in seen:
            program.cancel()
        seen.add(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked, number)
    try:
        code = await program
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return INTERRUPTED if signal.SIGINT in seen else FINE if code is None else code


def set_up_logging(level: str = "info") -> None:
    """One line an entry on stderr: time, level, logger, message. `level` is a name that logging knows, in any case."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s %(message)s", stream=sys.stderr, force=True)


def check_identity() -> None:
    """UserError, naming the path, where the package that was imported as `protocol` is not FMRec's."""
    if getattr(protocol, "IDENTITY", None) != EXPECTED_IDENTITY:
        where = getattr(protocol, "__file__", None) or "an unknown place"
        raise UserError(f"the package `protocol` in {where} is not FMRec's: install FMRec into a virtual environment of its own")


async def listen_port(connections: Connections, host: str, port: int) -> Address:
    """connections.listen(); UserError, in a sentence, where the port cannot be had."""
    with _port_wanted(host, port):
        return await connections.listen(host, port)


async def try_port(host: str, port: int, within_s: float) -> None:
    """UserError, as listen_port(), where the port cannot be had: to be told before whatever takes seconds is begun. Whoever listens there
    may be about to leave: it is tried again for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    with _port_wanted(host, port):
        while True:
            try:
                server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or loop.time() >= deadline:
                    raise
                await asyncio.sleep(PORT_AGAIN_S)
            else:
                server.close()
                await server.wait_closed()
                return


@contextmanager
def _port_wanted(host: str, port: int) -> Iterator[None]:
    """What binding it fails with becomes a UserError."""
    try:
        yield
    except OSError as error:
        remedy = "choose another with --listen"
        where = f"port {port} on {host}"
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"{where} is in use: stop what listens there or {remedy}") from error
        if error.errno == errno.EACCES:
            raise UserError(f"{where} needs privileges that this process does not have: {remedy}") from error
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UserError(f"{where} cannot be listened on ({reason}): {remedy}") from error
    except (OverflowError, ValueError) as error:
        raise UserError(f"port {port} on {host!r} is no address: {error}") from error
