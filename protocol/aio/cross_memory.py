"""A record between two processes of one machine: the receiver reads it from the sender's memory (Linux's cross memory attach).

    push    BulkPush(memory), front ->    reads    <- BulkStored
    fetch   BulkFetch ->    <- BulkAccept(memory), front    reads, and closes the link

1. Who sends says where the record is, to whoever has its own address. Nobody else learns addresses of its memory.
2. Who receives reads the token first. Where it isn't there, the number means another process here: the sender is in a container, or behind
   an address that is shared. Where the system does not let us look (another user; kernel.yama.ptrace_scope; no such call), that is no
   fault either: the chunks are asked for over the link, as from anywhere.
3. The bytes are believed no more than those of a link: each chunk is checked. So it does no harm if the sender dies and its number is
   given to another process, or if it gives up and uses the memory for something else.
4. The sender keeps the record until the link ends, or the answer comes. It has nothing to do meanwhile: one that hangs can be read.

Why: over loopback each byte is copied twice, by two processes that both need a processor. Read like this it is copied once, and the sender
is left in peace: where nothing else runs that is no faster (`scripts/bench_bulk.py`), and where a dozen agents share two cores, a
checkpoint takes a quarter less of the processors' time (`scripts/bench_recovery.py`). MPI's libraries and TensorPipe do the same.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
from weakref import WeakKeyDictionary

import numpy as np

from protocol.aio.link import Link
from protocol.chunks import Data
from protocol.parameters import OverlayParameters
from protocol.wire.values import TOKEN_BYTES, MemoryPlace


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_readv = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
"""None on other systems than Linux."""
if _readv is not None:
    _readv.restype = ctypes.c_ssize_t
    _readv.argtypes = (ctypes.c_int, ctypes.POINTER(_Part), ctypes.c_ulong, ctypes.POINTER(_Part), ctypes.c_ulong, ctypes.c_ulong)

_tokens: dict[int, np.ndarray[tuple[int], np.dtype[np.uint8]]] = {}
"""Ours, by process: a fork makes its own."""
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def place_of(data: Data, link: Link, parameters: OverlayParameters) -> MemoryPlace | None:
    """Where this process has the bytes, which the caller keeps there as long as the link is open. None: the other side is not to know."""
    if _readv is None or not parameters.cross_memory or not link.from_here:
        return None
    pid = os.getpid()
    if (token := _tokens.get(pid)) is None:
        _tokens.clear()
        token = _tokens[pid] = np.frombuffer(secrets.token_bytes(TOKEN_BYTES), np.uint8)
    return MemoryPlace(pid, _address(data), _address(token.data), token.tobytes())


class RemoteRecord:
    """The bytes of one record in another process. turn: held by whoever reads, of all readers of one event loop."""

    def __init__(self, place: MemoryPlace) -> None:
        self.turn = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        self._place = place

    def read(self, offset: int, into: memoryview) -> None:
        """Fills `into` from this byte of the record on. OSError where that can't be read."""
        _read(self._place.pid, self._place.address + offset, into)


def remote_record(place: MemoryPlace | None, parameters: OverlayParameters) -> RemoteRecord | None:
    """What the place leads to; None where it can't be read, or is not what it is said to be."""
    if place is None or _readv is None or not parameters.cross_memory:
        return None
    found = bytearray(TOKEN_BYTES)
    try:
        _read(place.pid, place.token_address, memoryview(found))
    except OSError:
        return None
    return RemoteRecord(place) if found == place.token else None


def _read(pid: int, address: int, into: memoryview) -> None:
    assert _readv is not None
    done, own = 0, _address(into)
    while done < len(into):
        left = len(into) - done
        read = _readv(pid, _Part(own + done, left), 1, _Part(address + done, left), 1, 0)
        if read <= 0:
            number = ctypes.get_errno() if read < 0 else 0
            raise OSError(number, os.strerror(number) if number else "nothing is there")
        done += read


def _address(data: Data) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)
