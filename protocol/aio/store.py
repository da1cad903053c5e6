"""The records that this process holds: the newest of each (owner, tree), in memory, and on disk where there is a directory.

A record is held when it is in memory; disk follows in a worker thread, one write at a time, and only ever the newest of a key.
Files are written beside and renamed, so that a kill at any moment leaves the old file or the new one. They are not synced: a
power cut may tear one, which its digest shows, and the replicas on other machines are for that.

A file is what a push would send, with its own check before it, so that a flipped bit is noticed wherever it is:

    8 bytes magic   32 bytes SHA-256 of the next two   4 bytes length   BulkPush (msgpack)   the record's bytes

Nothing that the disk does raises: a file that is no record is passed over, a write that fails leaves the record in memory, and
either is said in a sentence (a failing disk once, until it works again).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from protocol.errors import RecordInvalid, RemoteProtocolError
from protocol.identifiers import NodeId, TreeId
from protocol.knowledge import Data, verify
from protocol.wire.codec import decode, encode
from protocol.wire.framing import LENGTH_BYTES, FrameReader, frame
from protocol.wire.messages import BulkPush
from protocol.wire.values import RecordSummary

MAGIC = b"FMRec\x00r1"
CHECK_BYTES = 32
HEADER_BYTES_MAX = 4096
SUFFIX = ".record"
UNFINISHED = ".writing"

Key = tuple[NodeId, TreeId]


class RecordStore:
    """`directory` None: memory only. bytes_max bounds what admit() lets in from others. said() is given each sentence."""

    def __init__(self, directory: Path | None, bytes_max: int, said: Callable[[str], None]) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._said = said
        self._records: dict[Key, tuple[RecordSummary, Data]] = {}
        self._bytes = 0
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}  # woken at each put of the key
        self._unwritten: dict[Key, None] = {}  # keys whose file lags behind memory, in the order of their change
        self._writer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "records") if directory is not None else None
        self._disk_failed = False  # said already

    def __len__(self) -> int:
        """How many records are held."""
        return len(self._records)

    @property
    def bytes_held(self) -> int:
        return self._bytes

    def admit(self, summary: RecordSummary) -> str | None:
        """None where a record pushed by another would be kept, else why not, in a sentence. Nothing changes."""
        held = self._records.get(summary.key)
        if held is not None and held[0].order > summary.order:
            return f"version {held[0].version} of {summary.owner.short} is held already, newer than {summary.version}"
        others = self._bytes - (held[0].record_bytes if held is not None else 0)
        if others + summary.record_bytes > self._bytes_max:
            return f"the store is full: {others} of {self._bytes_max} bytes are taken, the record has {summary.record_bytes}"
        return None

    def put(self, summary: RecordSummary, data: Data) -> bool:
        """Holds the record, which the caller has verified and admitted. False, nothing changed, where one as new is held."""
        held = self._records.get(summary.key)
        if held is not None:
            if held[0].order >= summary.order:
                return False
            self._bytes -= held[0].record_bytes
        self._records[summary.key] = summary, data
        self._bytes += summary.record_bytes
        for waiter in self._waiting.get(summary.key, ()):
            if not waiter.done():
                waiter.set_result(None)
        self._changed(summary.key)
        return True

    def get(self, owner: NodeId, tree: TreeId, version_min: int = 0) -> tuple[RecordSummary, Data] | None:
        """The newest record of (owner, tree), if its version is at least version_min."""
        held = self._records.get((owner, tree))
        return held if held is not None and held[0].version >= version_min else None

    async def wait_for(self, owner: NodeId, tree: TreeId, version: int, timeout_s: float) -> tuple[RecordSummary, Data] | None:
        """get(), waiting up to timeout_s seconds for such a record to come; None where it does not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (held := self.get(owner, tree, version)) is None:
                    await self._next_put((owner, tree))
                return held
        return None

    def discard(self, summary: RecordSummary) -> None:
        """Forgets this record, and any older one of its key; a newer one stays."""
        held = self._records.get(summary.key)
        if held is None or held[0].order > summary.order:
            return
        del self._records[summary.key]
        self._bytes -= held[0].record_bytes
        self._changed(summary.key)

    def held(self) -> list[RecordSummary]:
        """What is held, by owner and tree."""
        return [self._records[key][0] for key in sorted(self._records)]

    async def load(self) -> None:
        """Reads the directory, making it where it is missing; what it holds is put(), without being written again."""
        if self._directory is None or self._thread is None:
            return
        found, sentences = await asyncio.get_running_loop().run_in_executor(self._thread, _read_all, self._directory)
        for sentence in sentences:
            self._said(sentence)
        for summary, data in found:
            if self.put(summary, data):
                self._unwritten.pop(summary.key, None)

    async def flush(self) -> None:
        """Until the disk holds what memory holds, or has failed to."""
        while self._writer is not None:
            await asyncio.shield(self._writer)

    async def close(self) -> None:
        """Flushes, and ends the worker thread. The store is not used again."""
        await self.flush()
        if self._thread is not None:
            self._thread.shutdown()

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _next_put(self, key: Key) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(key, set())
        waiters.add(waiter)
        try:
            await waiter
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiting.get(key) is waiters:
                del self._waiting[key]

    def _changed(self, key: Key) -> None:
        if self._directory is None:
            return
        self._unwritten[key] = None
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Brings the files of changed keys up to date, whatever is newest when a key's turn comes."""
        assert self._directory is not None
        loop = asyncio.get_running_loop()
        try:
            while self._unwritten:
                key = next(iter(self._unwritten))
                del self._unwritten[key]
                path = self._directory / f"{key[0]}-{key[1]}{SUFFIX}"
                try:
                    await loop.run_in_executor(self._thread, _replace, path, self._records.get(key))
                    self._disk_failed = False
                except OSError as error:
                    self._say_failed(error)
        finally:
            self._writer = None

    def _say_failed(self, error: OSError) -> None:
        if not self._disk_failed:
            self._disk_failed = True
            self._said(f"records are kept in memory only: {self._directory} cannot be written ({error.strerror or error})")


# --- the disk, in the worker thread -----------------------------------------------------------------------------------


def _replace(path: Path, held: tuple[RecordSummary, Data] | None) -> None:
    """The file becomes this record, or goes. OSError leaves the old file, and nothing half-written."""
    if held is None:
        path.unlink(missing_ok=True)
        return
    header = frame(encode(BulkPush(held[0], "replica")))
    unfinished = path.with_suffix(UNFINISHED)
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for part in (MAGIC, sha256(header).digest(), header, held[1]):
                _write_fully(descriptor, memoryview(part))
        finally:
            os.close(descriptor)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def _write_fully(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]


def _read_all(directory: Path) -> tuple[list[tuple[RecordSummary, Data]], list[str]]:
    """Every record in the directory, and a sentence for each file that is none."""
    found: list[tuple[RecordSummary, Data]] = []
    sentences: list[str] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths = sorted(directory.iterdir())
    except OSError as error:
        return [], [f"no records were read: {directory} cannot be used ({error.strerror or error})"]
    for path in paths:
        if path.suffix == UNFINISHED:
            with contextlib.suppress(OSError):
                path.unlink()  # the write that a kill cut short; the file that it would have replaced is still there
            continue
        try:
            if path.suffix != SUFFIX:
                raise RecordInvalid("it is none of ours")
            found.append(_read(path))
        except (RecordInvalid, RemoteProtocolError) as error:
            sentences.append(f"{path} is passed over: {error}")
        except OSError as error:
            sentences.append(f"{path} is passed over: it cannot be read ({error.strerror or error})")
    return found, sentences


def _read(path: Path) -> tuple[RecordSummary, Data]:
    data = memoryview(path.read_bytes())
    start = len(MAGIC) + CHECK_BYTES
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise RecordInvalid("it does not begin as a record")
    reader = FrameReader(HEADER_BYTES_MAX)
    reader.feed(data[start : start + LENGTH_BYTES + HEADER_BYTES_MAX])
    payload = reader.next_frame()
    if payload is None or sha256(frame(payload)).digest() != data[len(MAGIC) : start]:
        raise RecordInvalid("its header is torn or was changed")
    message = decode(payload)
    if not isinstance(message, BulkPush):
        raise RecordInvalid("its header is not of a record")
    content = data[start + LENGTH_BYTES + len(payload) :]
    verify(message.record, content)
    return message.record, content
