"""What a node has promised to roots of trees (overlay/terms.py), on disk: an elector that was killed keeps its word.

    8 bytes magic   32 bytes digest of the rest   msgpack: the promises

The file is replaced as a whole, and synced, before the promise is told. A disk that fails is said once, and done without: it must not end
the run. Where it can't even be rid of what it holds (read-only since), nothing more is promised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocol.aio.synced_file import replace_file, sync_directory
from protocol.chunks import digest_of
from protocol.errors import MalformedMessage
from protocol.overlay.promise import TreePromise
from protocol.wire.codec import pack, unpack_as

MAGIC = b"FMRec\x00p1"
HEAD_BYTES = len(MAGIC) + 32
PROMISES_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Promises:
    """The file's content."""

    promises: tuple[TreePromise, ...]


class PromiseFile:
    """The file at `path`. said() is given each sentence about what cannot be read or written."""

    def __init__(self, path: Path, said: Callable[[str], None]) -> None:
        self._path = path
        self._said = said
        self._kept: tuple[TreePromise, ...] = ()
        self._turn = asyncio.Lock()
        self._failed = False

    def read(self) -> tuple[TreePromise, ...]:
        """What an earlier life has promised; nothing, and said, where the file is torn."""
        try:
            whole = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._said(f"{self._path} is passed over: it cannot be read ({error.strerror or error})")
            return ()
        head, content = whole[:HEAD_BYTES], whole[HEAD_BYTES:]
        if head != MAGIC + digest_of(content):
            self._said(f"{self._path} is passed over: it is torn or was changed; what this agent has promised is forgotten")
            return ()
        try:
            self._kept = unpack_as(Promises, content, PROMISES_BYTES_MAX).promises
        except MalformedMessage as error:
            self._said(f"{self._path} is passed over: {error}")
        return self._kept

    async def keep(self, promises: tuple[TreePromise, ...]) -> bool:
        """Until the disk holds these, or has failed to. In the order of the calls. False where it holds older ones, which it won't lose:
        the next life would take these for all that was promised, so they must not be told."""
        async with self._turn:
            if promises == self._kept:
                return True
            try:
                await asyncio.to_thread(self._write, promises)
            except OSError as error:
                if not self._failed:
                    self._said(f"promises are kept in memory only: {self._path} cannot be written ({error.strerror or error})")
                self._failed = True
                return not await asyncio.to_thread(self._is_there)
            self._kept, self._failed = promises, False
            return True

    def _is_there(self) -> bool:
        try:
            return self._path.exists()
        except OSError:
            return True  # for all that is known

    def _write(self, promises: tuple[TreePromise, ...]) -> None:
        content = pack(Promises(promises))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, (MAGIC, digest_of(content), content))
            sync_directory(self._path.parent)
        except OSError:
            # The next life must not take what is there for all that was promised. A full disk can still forget.
            with suppress(OSError):
                self._path.unlink()
                sync_directory(self._path.parent)
            raise
