"""A folder of state belongs to one process at a time, however that one ends. Real processes, killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.aio.folder_lock import FolderLock
from protocol.aio.process import UserError

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import asyncio, sys
from pathlib import Path
from protocol.aio.folder_lock import FolderLock

async def main():
    await FolderLock(Path(sys.argv[1])).take(0.0)
    print("holds it", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def holder(tmp_path: Path) -> AsyncIterator[tuple[Process, Path]]:
    """A process that holds a folder, which it has made."""
    folder = tmp_path / "made" / "by it"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, str(folder), cwd=ROOT, stdout=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"holds it\n"
    yield process, folder
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def test_another_process_has_it_until_it_is_killed(holder: tuple[Process, Path]) -> None:
    (first, folder), ours = holder, FolderLock(holder[1])
    with pytest.raises(UserError, match=r"the state in .*/by it is in use by another process, which may hang: stop that one, or choose "):
        await ours.take(within_s=0.05)
    waiting = asyncio.create_task(ours.take(within_s=60.0))
    await asyncio.sleep(0)
    first.kill()
    async with asyncio.timeout(20):
        await waiting
    with pytest.raises(UserError):
        await FolderLock(folder).take(within_s=0.0)
    ours.release()
    later = FolderLock(folder)
    await later.take(within_s=0.0)
    later.release()
    assert list(folder.iterdir()) == [], "it leaves nothing there"


async def test_a_folder_that_cannot_be_locked_is_said_and_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "a").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        await FolderLock(tmp_path / "a").take(within_s=0.0)
    assert "is not locked" in caplog.text
    assert len(os.listdir("/proc/self/fd")) == before
