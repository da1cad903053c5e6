"""Files that a power cut leaves as they were or as they are to be: written beside, synced, renamed, and the directory synced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from protocol.chunks import Data

UNFINISHED = ".writing"
"""Ends the name of a file that was being written when its process was killed."""


def replace_file(path: Path, parts: Iterable[Data]) -> None:
    """The file becomes these bytes, one part after the other, synced; its name is safe after sync_directory(). OSError leaves the old
    file, and nothing half-written."""
    unfinished = path.with_suffix(UNFINISHED)
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for part in parts:
                _write_fully(descriptor, memoryview(part))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def sync_directory(directory: Path) -> None:
    """What was renamed in it stays renamed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_fully(descriptor: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(descriptor, data) :]
