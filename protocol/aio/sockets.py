"""What is set on every socket of ours, and what the number of its descriptor tells.

Whoever vanishes without a word (power cut, cable pulled) sends no reset: its connections stay half open. The overlay finds a silent
neighbour or relative by its missing heartbeats, and any other peer by the message that it does not answer. For what nobody uses, and
for transfers, the kernel asks: after orphan_max_s of silence, when the overlay has long had its say, it sends three probes within the
same time again, and then the connection is lost. Written bytes that nobody acknowledges are given up after the two together.
"""

from __future__ import annotations

import math
import resource
import socket

from protocol.parameters import OverlayParameters

KEEPALIVE_PROBES = 3
_CLOSE_WAIT = 8  # the kernel's number of that state, the first byte of TCP_INFO


def half_open_max_s(parameters: OverlayParameters) -> int:
    """A connection whose other end has vanished is lost after this, whoever uses it. The kernel counts whole seconds."""
    silent_s, apart_s = _keepalive(parameters)
    return silent_s + KEEPALIVE_PROBES * apart_s


def find_half_open(sock: socket.socket, parameters: OverlayParameters) -> None:
    """Has the kernel find out that the other end has vanished, with or without something to send."""
    silent_s, apart_s = _keepalive(parameters)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, silent_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, apart_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * half_open_max_s(parameters))


def descriptors_left(sock: socket.socket) -> int:
    """How many file descriptors this process may still open, at least: a new one has the lowest number that is free."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1 - sock.fileno()


def given_up(sock: socket.socket) -> bool:
    """Has the other side closed its end already? So it is with a dial that timed out before we came to accept it."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT


def _keepalive(parameters: OverlayParameters) -> tuple[int, int]:
    """Silence before the first probe, and between two."""
    return math.ceil(parameters.orphan_max_s), math.ceil(parameters.orphan_max_s / KEEPALIVE_PROBES)
