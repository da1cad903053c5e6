"""The records that this process holds: the newest of each (owner, tree), in memory, and on disk where there is a directory.

1. Memory comes first: get() gives what put() took at once. Disk follows in a worker thread, and only ever the newest of a key.
2. A record is *settled* when it would come back after a power cut: its file is written beside, synced, renamed, and the directory
   synced too; without a directory, when it is in memory. A holder says that it has stored a record when it is settled. What that costs
   is the disk's time for a sync, in the background (scripts/bench_bulk.py --only disk measures it); training does not wait for it.
3. A kill at any moment leaves the old file or the new one. Files that nobody finished are removed at the next start.
4. Nothing that the disk does raises. A file that is no whole record is passed over and said; it stays, for people to look at, and under
   another name (DAMAGED) once its own is needed. Into a folder that could not be read nothing is written. Where a record may be that
   was not read, unread() tells: its owner may not want to begin anew. A write that fails leaves the record in memory, unsettled, and is
   said once, until the disk works again. The holder counts all the same, as one without a directory does: else a full disk, which
   processes of one machine share, would end the run that it was to protect.
5. bytes_max bounds what others may bring and what is fetched of others, a file's own length what is read of it.

A file is what a push would send, with its own check before it, so that a flipped bit is noticed wherever it is:

    8 bytes magic   32 bytes digest of the next two   4 bytes length   BulkPush (msgpack)   the record's bytes
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

from protocol.aio.synced_file import UNFINISHED, replace_file, sync_directory
from protocol.chunks import Data, digest_of, verify
from protocol.errors import RecordInvalid, RemoteProtocolError
from protocol.identifiers import NodeId, TreeId
from protocol.wire.codec import decode, encode
from protocol.wire.framing import LENGTH_BYTES, FrameReader, frame
from protocol.wire.moving import BulkPush
from protocol.wire.values import RecordSummary

MAGIC = b"FMRec\x00r2"
CHECK_BYTES = 32
HEADER_BYTES_MAX = 4096
SUFFIX = ".record"
DAMAGED = ".damaged"
"""Ends the name of a file that could not be read, and whose own name was needed for another."""
FILE_NAME = re.compile(rf"([0-9a-f]{{32}})-([0-9a-f]{{32}}){re.escape(SUFFIX)}(?:\d*{re.escape(DAMAGED)})?")
SYNCED_TOGETHER_BYTES_MAX = 16 * 1024 * 1024
"""Records that wait for the disk share one sync of the directory, up to this; a small one never waits for many large ones."""

Key = tuple[NodeId, TreeId]
Held = tuple[RecordSummary, Data]


class RecordStore:
    """`directory` None: memory only. bytes_max bounds what admit() and is_full() let in of others. said() is given each sentence."""

    def __init__(self, directory: Path | None, bytes_max: int, said: Callable[[str], None]) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._said = said
        self._records: dict[Key, Held] = {}
        self._bytes = 0
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}  # woken at each put of the key
        self._unwritten: dict[Key, None] = {}  # keys whose file lags behind memory, in the order of their change
        self._writer: asyncio.Task[None] | None = None
        self._on_disk: dict[Key, tuple[int, int]] = {}  # the order of what would come back
        self._settling: dict[Key, set[asyncio.Future[None]]] = {}  # woken at each write of the key, and each failure
        self._thread = ThreadPoolExecutor(1, "records") if directory is not None else None
        self._failed: dict[Key, str] = {}  # keys whose last write failed, and why
        self._disk_failed = False  # said already
        self._unread: dict[Key, Path] = {}  # what is there of a key, and could not be read, where nothing else is
        self._folder_unread: OSError | None = None

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
        if held is not None and held[0].order == summary.order and held[0].digest != summary.digest:
            return f"another record that is version {summary.version} of {summary.owner.short} is held already"
        return self.is_full(summary)

    def is_full(self, summary: RecordSummary) -> str | None:
        """None where there is room for this record in place of what is held of its key, else a sentence."""
        held = self._records.get(summary.key)
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
        _wake(self._waiting, summary.key)
        self._changed(summary.key)
        return True

    def is_settled(self, summary: RecordSummary) -> bool:
        """Whether this record of those that are held, or a newer one of its key, would survive whatever this store survives."""
        return self._directory is None or self._on_disk.get(summary.key, (-1, -1)) >= summary.order

    async def settled(self, summary: RecordSummary) -> str | None:
        """Until is_settled(): None then, else why it can't be, in a sentence. The record was put() before; where its write has failed,
        it is tried again."""
        if summary.key in self._failed:
            self._changed(summary.key)
        while not self.is_settled(summary):
            if summary.key not in self._records:
                return f"version {summary.version} of {summary.owner.short} was discarded meanwhile"
            if summary.key in self._failed:
                return self._failed[summary.key]
            await self._woken(self._settling, summary.key)
        return None

    def get(self, owner: NodeId, tree: TreeId, version_min: int = 0) -> Held | None:
        """The newest record of (owner, tree), if its version is at least version_min."""
        held = self._records.get((owner, tree))
        return held if held is not None and held[0].version >= version_min else None

    async def wait_for(self, owner: NodeId, tree: TreeId, version: int) -> Held:
        """get(), when such a record is there; the caller sets a limit."""
        while (held := self.get(owner, tree, version)) is None:
            await self._woken(self._waiting, (owner, tree))
        return held

    def discard(self, summary: RecordSummary) -> None:
        """Forgets this record, and any older one of its key; a newer one stays."""
        held = self._records.get(summary.key)
        if held is None or held[0].order > summary.order:
            return
        del self._records[summary.key]
        self._bytes -= held[0].record_bytes
        self._on_disk.pop(summary.key, None)  # its file is there for a while yet, and is not to be relied on
        self._changed(summary.key)

    def held(self) -> list[RecordSummary]:
        """What is held, by owner and tree."""
        return [self._records[key][0] for key in sorted(self._records)]

    def unread(self, owner: NodeId, tree: TreeId) -> str:
        """Where a record of (owner, tree) may be that load() could not read, and what to do, in words. Empty where there is none, or where
        another has taken its place since."""
        if self._folder_unread is not None:
            return f"the folder {self._directory} cannot be read: see to that"
        found = self._unread.get((owner, tree))
        return f"the record in {found} cannot be read: restore it, or remove it to begin anew" if found is not None else ""

    async def load(self) -> None:
        """Reads the directory, making it where it is missing; what it holds is put(), without being written again. All of it: a cap that
        was lowered since keeps out what comes, and loses nothing that was kept."""
        if self._directory is None or self._thread is None:
            return
        read = await asyncio.get_running_loop().run_in_executor(self._thread, _read_all, self._directory)
        self._unread, self._folder_unread = read.unread, read.folder_unread
        for sentence in read.sentences:
            self._said(sentence)
        for summary, data in read.found:
            if self.put(summary, data):
                self._unwritten.pop(summary.key, None)
                self._on_disk[summary.key] = summary.order

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

    async def _woken(self, waiting: dict[Key, set[asyncio.Future[None]]], key: Key) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = waiting.setdefault(key, set())
        waiters.add(waiter)
        try:
            await waiter
        finally:
            waiters.discard(waiter)
            if not waiters and waiting.get(key) is waiters:
                del waiting[key]

    def _changed(self, key: Key) -> None:
        if self._directory is None:
            return
        self._unwritten[key] = None
        self._failed.pop(key, None)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Brings the files of changed keys up to date, whatever is newest when a key's turn comes."""
        assert self._directory is not None
        loop = asyncio.get_running_loop()
        try:
            while self._unwritten:
                batch = self._next_batch()
                if self._folder_unread is not None:
                    failures = dict.fromkeys(batch, self._folder_unread)
                else:
                    damaged = self._unread.keys() & batch.keys()
                    replaced, failures = await loop.run_in_executor(self._thread, _write_batch, self._directory, batch, damaged)
                    for key in sorted(damaged & replaced):
                        path = self._unread.pop(key)
                        if path.suffix == SUFFIX:
                            self._said(f"{path} was set aside as *{DAMAGED}: it could not be read, and its name was needed")
                for key, held in batch.items():
                    self._written(key, held, failures.get(key))
                    _wake(self._settling, key)
        finally:
            self._writer = None

    def _next_batch(self) -> dict[Key, Held | None]:
        """What to write next, by key; None where the record was discarded."""
        batch: dict[Key, Held | None] = {}
        size = 0
        while self._unwritten and size < SYNCED_TOGETHER_BYTES_MAX:
            key = next(iter(self._unwritten))
            del self._unwritten[key]
            batch[key] = held = self._records.get(key)
            size += held[0].record_bytes if held is not None else 0
        return batch

    def _written(self, key: Key, held: Held | None, error: OSError | None) -> None:
        if error is not None:
            why = f"{self._directory} cannot be written ({error.strerror or error})"
            if key not in self._unwritten:
                self._failed[key] = f"the record is in memory only: {why}"
            if not self._disk_failed:
                self._said(f"records are kept in memory only: {why}")
        elif held is not None and key in self._records and self._records[key][0].order >= held[0].order:
            self._on_disk[key] = held[0].order  # unless it was discarded meanwhile: then the file goes with the next batch
        self._disk_failed = error is not None


def _wake(waiting: dict[Key, set[asyncio.Future[None]]], key: Key) -> None:
    for waiter in waiting.get(key, ()):
        if not waiter.done():
            waiter.set_result(None)


# --- the disk, in the worker thread -----------------------------------------------------------------------------------


def _write_batch(directory: Path, batch: dict[Key, Held | None], damaged: set[Key]) -> tuple[set[Key], dict[Key, OSError]]:
    """Each file becomes its record, or goes; then the directory is synced. Whose files are others now, and what failed: that may be the
    sync alone. damaged: keys whose old file stays, under another name."""
    replaced: set[Key] = set()
    failures: dict[Key, OSError] = {}
    for key, held in batch.items():
        try:
            if key in damaged:
                _set_aside(directory / _file_name(key))
            _replace(directory / _file_name(key), held)
            replaced.add(key)
        except OSError as error:
            failures[key] = error
    try:
        sync_directory(directory)
    except OSError as error:
        failures |= dict.fromkeys(batch, error)
    return replaced, failures


def _file_name(key: Key) -> str:
    return f"{key[0]}-{key[1]}{SUFFIX}"


def _replace(path: Path, held: Held | None) -> None:
    """The file becomes this record, its bytes synced, or goes. OSError leaves the old file, and nothing half-written."""
    if held is None:
        path.unlink(missing_ok=True)
        return
    header = frame(encode(BulkPush(held[0], "replica")))
    replace_file(path, (MAGIC, digest_of(header), header, held[1]))


def _set_aside(path: Path) -> None:
    """Gives a file that could not be read the first name for such that is free. It keeps its own until another file takes that: who is
    killed in between finds it there."""
    names = (path.with_suffix(f"{path.suffix}{number}{DAMAGED}") for number in chain(("",), count(2)))
    if not path.exists():
        return
    aside = next(name for name in names if not name.exists() or name.samefile(path))
    if aside.exists():
        return
    try:
        aside.hardlink_to(path)
    except OSError:  # not every file system has links
        path.rename(aside)


@dataclass(slots=True)
class _Read:
    """What a directory holds: every record, the files that are none and whose they would be, where there is no record of that key, and a
    sentence for each of these and of others' files."""

    found: list[Held] = field(default_factory=list)
    unread: dict[Key, Path] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    folder_unread: OSError | None = None


def _read_all(directory: Path) -> _Read:
    read = _Read()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        paths = sorted(directory.iterdir())
    except OSError as error:
        read.sentences.append(f"no records were read: {directory} cannot be used ({error.strerror or error})")
        read.folder_unread = error if _may_be_there(directory) else None
        return read
    for path in paths:
        if path.suffix == UNFINISHED:
            with contextlib.suppress(OSError):
                path.unlink()  # the write that a kill cut short; the file that it would have replaced is still there
            continue
        try:
            if path.suffix != SUFFIX:
                raise RecordInvalid("it could not be read, and was set aside" if path.suffix == DAMAGED else "it is none of ours")
            read.found.append(_read(path))
            continue
        except (RecordInvalid, RemoteProtocolError) as error:
            read.sentences.append(f"{path} is passed over: {error}")
        except OSError as error:
            read.sentences.append(f"{path} is passed over: it cannot be read ({error.strerror or error})")
        if (named := FILE_NAME.fullmatch(path.name)) is not None:
            # In order of their names: the file that was set aside first, after one that has its own name.
            read.unread.setdefault((NodeId(int(named[1], 16)), TreeId(int(named[2], 16))), path)
    for summary, _ in read.found:
        read.unread.pop(summary.key, None)
    return read


def _may_be_there(directory: Path) -> bool:
    """Is this a folder, or can that not be told?"""
    try:
        return stat.S_ISDIR(directory.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _read(path: Path) -> Held:
    """The record in this file. RecordInvalid, RemoteProtocolError where it holds none: little more than its header is read then."""
    with path.open("rb") as file:
        record = _read_header(file)
        size = os.fstat(file.fileno()).st_size - file.tell()
        if size != record.record_bytes:
            raise RecordInvalid(f"its record has {size} bytes, not {record.record_bytes}")
        data = memoryview(file.read(size))
    verify(record, data)
    if path.name != _file_name(record.key):
        raise RecordInvalid("it is a record under another's name")
    return record, data


def _read_header(file: BinaryIO) -> RecordSummary:
    """What the file's header says it holds; the record's bytes follow."""
    if file.read(len(MAGIC)) != MAGIC:
        raise RecordInvalid("it does not begin as a record")
    check = file.read(CHECK_BYTES)
    length = file.read(LENGTH_BYTES)
    reader = FrameReader(HEADER_BYTES_MAX)
    reader.feed(length)
    reader.next_frame()  # a length that may not be is an error
    payload = file.read(int.from_bytes(length, "big"))
    if digest_of(frame(payload)) != check:
        raise RecordInvalid("its header is torn or was changed")
    message = decode(payload)
    if not isinstance(message, BulkPush):
        raise RecordInvalid("its header is not of a record")
    return message.record
