"""An elector's promises on disk: they come back in its next life, are synced before they are told, and a torn file is passed over."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.aio.promises import PromiseFile
from protocol.identifiers import Peer, tree_id
from protocol.overlay.promise import Promise, TreePromise

TREE = tree_id("t", "u")
FIRST = TreePromise(TREE, Promise(7, 3, 6, Peer(TREE, "127.0.0.1", 7000, 7)))
SECOND = TreePromise(tree_id("other", "u"), Promise(9, 1, 9, Peer(tree_id("other", "u"), "127.0.0.1", 7000, 9)))


def file(path: Path) -> tuple[PromiseFile, list[str]]:
    said: list[str] = []
    return PromiseFile(path, said.append), said


async def test_the_next_life_reads_what_was_promised(tmp_path: Path) -> None:
    path = tmp_path / "made on the way" / "promises"
    first, said = file(path)
    assert first.read() == ()
    await first.keep((FIRST,))
    await first.keep((FIRST, SECOND))
    again, said_again = file(path)
    assert again.read() == (FIRST, SECOND)
    assert said == said_again == []
    assert [path] == [*path.parent.iterdir()], "nothing is left beside it"


async def test_promises_are_synced_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is on disk when its keep() returns, whatever was kept at the same time."""
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append("file"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append("directory"), sync(descriptor))[1])
    kept, _ = file(tmp_path / "promises")

    async def keep(promise: TreePromise) -> tuple[TreePromise, ...]:
        await kept.keep((promise,))
        return file(tmp_path / "promises")[0].read()

    later = [replace(FIRST, promise=replace(FIRST.promise, term=term)) for term in range(8, 12)]
    assert await asyncio.gather(*map(keep, later)) == [(promise,) for promise in later]
    assert synced == ["file", "directory"] * 4
    await kept.keep((later[-1],))
    assert len(synced) == 8, "what is there already is not written again"


@pytest.mark.parametrize("at", [0, 9, 60, -1])
async def test_a_torn_file_is_passed_over_and_said(tmp_path: Path, at: int) -> None:
    path = tmp_path / "promises"
    await file(path)[0].keep((FIRST, SECOND))
    whole = bytearray(path.read_bytes())
    whole[at] ^= 1
    for torn in (whole, path.read_bytes()[:at], b""):
        path.write_bytes(torn)
        again, said = file(path)
        assert again.read() == ()
        assert len(said) == 1
        assert "is torn or was changed" in said[0]
    await again.keep((FIRST,))
    assert file(path)[0].read() == (FIRST,)


async def test_what_a_disk_that_fails_still_has_is_not_taken_for_all_that_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next life remembers nothing, and says so; it does not go by an older promise."""
    kept, said = file(tmp_path / "promises")
    await kept.keep((FIRST,))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("protocol.aio.promises.replace_file", full)
        await kept.keep((FIRST, SECOND))
    assert "promises are kept in memory only" in said[0]
    assert file(tmp_path / "promises")[0].read() == ()
    await kept.keep((FIRST, SECOND))
    assert file(tmp_path / "promises")[0].read() == (FIRST, SECOND), "there is room again"


async def test_where_the_disk_keeps_an_older_promise_no_later_one_may_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that became read-only: the next life would remember the older one as all that was promised."""
    kept, said = file(tmp_path / "promises")
    assert await kept.keep((FIRST,))

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as disk:
        disk.setattr("protocol.aio.promises.replace_file", read_only)
        disk.setattr(Path, "unlink", read_only)
        assert not await kept.keep((FIRST, SECOND))
        assert "Read-only file system" in said[0]
        assert file(tmp_path / "promises")[0].read() == (FIRST,)
        assert await kept.keep((FIRST,)), "what is on the disk may be told"
    assert await kept.keep((FIRST, SECOND))


async def test_a_disk_that_fails_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("where a directory should be")
    kept, said = file(tmp_path / "a file" / "promises")
    for promises in ((FIRST,), (FIRST, SECOND)):
        assert await kept.keep(promises), "no older one is there, so the next life says that it remembers none"
    assert len(said) == 1
    assert "promises are kept in memory only" in said[0]
