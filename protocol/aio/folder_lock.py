"""One process at a time keeps its state in a folder: two lives that write into one would each undo what the other has made safe.

The lock is flock(2)'s, on the folder itself: the kernel gives it back when the process is gone, however that went, and no file is left
to be mistaken for one. It belongs to the descriptor: who copies that (a fork, `unshare`) holds the folder as well.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from pathlib import Path

from protocol.aio.process import UserError

logger = logging.getLogger(__name__)

AGAIN_S = 0.01


class FolderLock:
    """Holds a folder from `take` to `release`, or to the end of the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    async def take(self, within_s: float) -> None:
        """UserError where another process holds the folder, and goes on holding it for so long. A folder that cannot be made or locked is
        said, and done without: whatever is to be written there will say so as well."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            while not self._has(self._descriptor):
                if loop.time() >= deadline:
                    self.release()
                    raise UserError(
                        f"the state in {self._folder} is in use by another process, which may hang: "
                        "stop that one, or choose another folder with --state-dir"
                    )
                await asyncio.sleep(AGAIN_S)
        except OSError as error:
            self.release()
            logger.warning("%s is not locked (%s): see to it that no other process keeps its state there", self._folder, error)

    def _has(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Another may have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
