"""The store keeps the newest, and no disk can hurt it (P2)."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from protocol.aio.store import RecordStore
from protocol.aio.synced_file import sync_directory
from protocol.chunks import bind, verify
from protocol.identifiers import agent_id, tree_id
from protocol.wire.values import RecordSummary

TREE = tree_id("t", "u")


def record(version: int = 1, owner: str = "a", size: int = 1000, incarnation: int = 1) -> tuple[RecordSummary, bytes]:
    digest, data = bind([[bytes([version % 256]) * (size - 56)]])  # the front of a record of one chunk has 56 bytes
    return RecordSummary(agent_id("c", owner), TREE, version, incarnation, 0, 0, False, len(data), digest), bytes(data)


def store(directory: Path | None = None, bytes_max: int = 1 << 20) -> tuple[RecordStore, list[str]]:
    said: list[str] = []
    return RecordStore(directory, bytes_max, said.append), said


def files_in(directory: Path, pattern: str = "*") -> list[Path]:
    return sorted(directory.glob(pattern))


async def reloaded(directory: Path) -> tuple[list[RecordSummary], list[str]]:
    again, said = store(directory)
    await again.load()
    held = again.held()
    for summary in held:
        found = again.get(summary.owner, summary.tree)
        assert found is not None
        verify(*found)
    await again.close()
    return held, said


def test_only_the_newest_is_held() -> None:
    held, _ = store()
    assert held.put(*record(2))
    assert not held.put(*record(1))
    assert not held.put(*record(2))
    assert held.put(*record(3))
    assert held.held() == [record(3)[0]]
    assert held.bytes_held == 1000
    assert held.get(agent_id("c", "a"), TREE, version_min=4) is None


def test_the_record_of_a_later_life_is_the_newer_one_whatever_the_earlier_life_had_counted_to() -> None:
    """It began where no copy was in reach, counts from 1, and is the one that lives."""
    held, _ = store()
    assert held.put(*record(40, incarnation=1))
    assert held.admit(record(1, incarnation=2)[0]) is None
    assert held.put(*record(1, incarnation=2))
    assert "is held already, newer than 41" in (held.admit(record(41, incarnation=1)[0]) or "")


def test_a_full_store_says_so() -> None:
    held, _ = store(bytes_max=2500)
    held.put(*record(1, "a"))
    held.put(*record(1, "b"))
    assert held.admit(record(2, "a")[0]) is None, "it takes the place of the older one"
    assert held.admit(record(1, "c")[0]) == "the store is full: 2000 of 2500 bytes are taken, the record has 1000"
    assert "is held already" in str(held.admit(record(0, "a")[0]))


def test_discarding_spares_a_newer_record() -> None:
    held, _ = store()
    held.put(*record(2))
    held.discard(record(1)[0])
    assert held.held() == [record(2)[0]]
    held.discard(record(2)[0])
    assert (held.held(), held.bytes_held) == ([], 0)


async def test_waiting_for_a_version() -> None:
    held, _ = store()
    held.put(*record(1))
    waiting = asyncio.create_task(held.wait_for(agent_id("c", "a"), TREE, 3))
    await asyncio.sleep(0)
    held.put(*record(2))
    await asyncio.sleep(0)
    assert not waiting.done()
    held.put(*record(4))
    assert await waiting == record(4)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(held.wait_for(agent_id("c", "a"), TREE, 5), 0.01)
    assert not held._waiting


async def test_records_outlive_the_process(tmp_path: Path) -> None:
    held, said = store(tmp_path / "new" / "records")
    await held.load()
    for version in range(1, 30):
        held.put(*record(version))
    held.put(*record(1, "b", size=57))
    held.put(*record(1, "gone"))
    held.discard(record(1, "gone")[0])
    await held.close()
    assert not said
    found, said = await reloaded(tmp_path / "new" / "records")
    assert {summary.order for summary in found} == {(1, 29), (1, 1)}
    assert len(found) == 2
    assert not said
    assert len(files_in(tmp_path / "new" / "records")) == 2


async def test_a_record_is_gone_from_disk_when_discarded(tmp_path: Path) -> None:
    held, _ = store(tmp_path)
    held.put(*record(1))
    await held.flush()
    held.discard(record(1)[0])
    await held.close()
    assert files_in(tmp_path) == []


async def test_torn_flipped_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    held, _ = store(tmp_path)
    for owner in ("torn", "flipped", "whole", "empty"):
        held.put(*record(1, owner))
    await held.close()
    files = {owner: files_in(tmp_path, f"{agent_id('c', owner)}*")[0] for owner in ("torn", "flipped", "whole", "empty")}
    files["torn"].write_bytes(files["torn"].read_bytes()[:-100])
    flipped = bytearray(files["flipped"].read_bytes())
    flipped[-1] ^= 1
    files["flipped"].write_bytes(flipped)
    files["empty"].write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder.record").mkdir()
    (tmp_path / "x.writing").write_bytes(b"cut short by kill -9")
    found, said = await reloaded(tmp_path)
    assert found == [record(1, "whole")[0]]
    assert len(said) == 5
    for name in (files["torn"].name, files["flipped"].name, files["empty"].name, "notes.txt", "folder.record"):
        assert len([sentence for sentence in said if name in sentence and "is passed over" in sentence]) == 1, name
    assert not (tmp_path / "x.writing").exists()
    assert (tmp_path / "notes.txt").exists()


async def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    held, _ = store(tmp_path)
    held.put(*record(1, size=100))
    await held.close()
    (path,) = files_in(tmp_path)
    good = path.read_bytes()
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        found, said = await reloaded(tmp_path)
        assert (found, len(said)) == ([], 1), f"byte {at} of {len(good)}"


async def test_a_file_that_cannot_be_read_is_told_by_key_and_never_replaced(tmp_path: Path) -> None:
    """Its name goes to a newer record, its bytes stay; and the owner, who may not want to begin anew, is told."""
    held, _ = store(tmp_path)
    for owner in ("a", "b"):
        held.put(*record(1, owner))
    await held.close()
    path = tmp_path / f"{agent_id('c', 'a')}-{TREE}.record"
    for version, kept in ((2, ".record.damaged"), (3, ".record2.damaged")):
        flipped = bytearray(path.read_bytes())
        flipped[-1] ^= 1
        path.write_bytes(flipped)
        held, said = store(tmp_path)
        await held.load()
        assert held.unread(agent_id("c", "a"), TREE) == f"the record in {path} cannot be read: restore it, or remove it to begin anew"
        assert not held.unread(agent_id("c", "b"), TREE)
        assert path.read_bytes() == flipped, "looking changes nothing"
        held.put(*record(version))
        assert await held.settled(record(version)[0]) is None
        assert not held.unread(agent_id("c", "a"), TREE)
        await held.close()
        assert path.with_suffix(kept).read_bytes() == flipped
        assert any(f"{path} was set aside" in sentence for sentence in said)
    found, said = await reloaded(tmp_path)
    assert {(summary.owner, summary.version) for summary in found} == {(agent_id("c", "a"), 3), (agent_id("c", "b"), 1)}
    assert len(said) == 2
    assert all("could not be read, and was set aside" in sentence for sentence in said)


async def torn(folder: Path) -> tuple[Path, RecordStore, list[str]]:
    """A file that cannot be read, the store that has passed it over, and what that has said."""
    held, _ = store(folder)
    held.put(*record(1))
    await held.close()
    (path,) = files_in(folder)
    path.write_bytes(b"torn")
    held, said = store(folder)
    await held.load()
    return path, held, said


@pytest.mark.parametrize("links", [True, False])
async def test_a_damaged_file_keeps_its_name_until_another_is_written(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, or with a disk that is full, the next life must not take the folder for one that never had the record. Without
    links a file has one name at a time."""
    path, held, _ = await torn(tmp_path)

    def unable(*arguments: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", unable)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", unable)
        for version in (2, 3):
            held.put(*record(version))
            await held.flush()
    assert {each.name for each in files_in(tmp_path)} == {f"{path.name}.damaged", *([path.name] if links else [])}
    next_life, _ = store(tmp_path)
    await next_life.load()
    assert str(path) in next_life.unread(agent_id("c", "a"), TREE)
    await next_life.close()
    held.put(*record(4))
    await held.close()
    assert (tmp_path / f"{path.name}.damaged").read_bytes() == b"torn"
    assert (await reloaded(tmp_path))[0] == [record(4)[0]]


async def test_where_the_folder_cannot_be_synced_no_good_file_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, held, said = await torn(tmp_path)

    def unable(directory: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("protocol.aio.store.sync_directory", unable)
    for version in (2, 3, 4):
        held.put(*record(version))
        await held.flush()
    await held.close()
    assert {each.name for each in files_in(tmp_path)} == {path.name, f"{path.name}.damaged"}
    assert not held.unread(agent_id("c", "a"), TREE)
    assert len(said) == 3, "passed over, set aside, in memory only"
    assert (await reloaded(tmp_path))[0] == [record(4)[0]]


async def test_what_is_discarded_takes_no_damaged_file_with_it(tmp_path: Path) -> None:
    path, held, _ = await torn(tmp_path)
    held.put(*record(2))
    held.discard(record(2)[0])
    await held.close()
    assert [(each.name, each.read_bytes()) for each in files_in(tmp_path)] == [(f"{path.name}.damaged", b"torn")]


async def test_into_a_folder_that_could_not_be_read_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, _ = store(tmp_path)
    held.put(*record(1))
    await held.close()
    before = {path: path.read_bytes() for path in files_in(tmp_path)}

    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", broken)
        held, said = store(tmp_path)
        await held.load()
    assert held.unread(agent_id("c", "a"), TREE) == f"the folder {tmp_path} cannot be read: see to that"
    held.put(*record(2))
    assert "in memory only" in str(await held.settled(record(2)[0]))
    await held.close()
    assert {path: path.read_bytes() for path in files_in(tmp_path)} == before
    assert len(said) == 2
    missing, _ = store(tmp_path / "new")
    await missing.load()
    assert not missing.unread(agent_id("c", "a"), TREE), "there is nothing that could be lost"
    await missing.close()


async def test_a_full_disk_costs_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, said = store(tmp_path)
    held.put(*record(1))
    await held.flush()
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    for version in (2, 3):
        assert held.put(*record(version))
        await held.flush()
    assert said == [f"records are kept in memory only: {tmp_path} cannot be written (No space left on device)"]
    assert held.held() == [record(3)[0]], "memory goes on"
    monkeypatch.setattr(os, "write", write)
    found, _ = await reloaded(tmp_path)
    assert found == [record(1)[0]], "the older file is whole"
    held.put(*record(4))
    await held.close()
    assert (await reloaded(tmp_path))[0] == [record(4)[0]]


async def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    held, said = store(tmp_path / "file" / "records")
    await held.load()
    assert held.put(*record(1))
    await held.close()
    assert len(said) == 2
    assert all("cannot be" in sentence for sentence in said)
    assert not held.unread(agent_id("c", "a"), TREE), "where no folder is there is no record"


async def test_without_a_directory_a_record_is_settled_at_once() -> None:
    held, _ = store()
    held.put(*record(1))
    assert held.is_settled(record(1)[0])
    assert await held.settled(record(1)[0]) is None


async def test_a_record_is_settled_when_its_file_and_then_the_directory_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after that leaves the record; before it, whatever was there before."""
    done: list[tuple[str, str]] = []

    def watch(name: str) -> None:
        act = getattr(os, name)

        def watched(what: int | Path, *more: Any) -> None:
            done.append((name, Path(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what).suffix))
            act(what, *more)

        monkeypatch.setattr(os, name, watched)

    for name in ("fdatasync", "replace", "fsync"):
        watch(name)
    held, _ = store(tmp_path)
    held.put(*record(1))
    assert not held.is_settled(record(1)[0])
    assert await held.settled(record(1)[0]) is None
    assert done == [("fdatasync", ".writing"), ("replace", ".writing"), ("fsync", "")]
    assert held.is_settled(record(1)[0])
    await held.close()


async def test_a_newer_version_settles_the_older(tmp_path: Path) -> None:
    held, _ = store(tmp_path)
    held.put(*record(1))
    waiting = [asyncio.create_task(held.settled(record(1)[0])) for _ in range(3)]
    held.put(*record(2))
    assert await asyncio.gather(*waiting) == [None] * 3
    assert await held.settled(record(2)[0]) is None
    assert not held._settling
    await held.close()
    assert (await reloaded(tmp_path))[0] == [record(2)[0]]


async def test_many_records_share_a_sync_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: [syncs.append(descriptor), sync(descriptor)])
    held, _ = store(tmp_path)
    for owner in "abcdefghij":
        held.put(*record(1, owner))
    await asyncio.gather(*(held.settled(record(1, owner)[0]) for owner in "abcdefghij"))
    await held.close()
    assert len(syncs) == 1
    assert len((await reloaded(tmp_path))[0]) == 10


async def test_what_the_disk_does_not_take_is_not_settled_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, said = store(tmp_path)
    sync = os.fdatasync

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", broken)
    held.put(*record(1, "a"))
    held.put(*record(1, "b"))
    assert "in memory only" in str(await held.settled(record(1, "a")[0]))
    assert "Input/output error" in str(await held.settled(record(1, "b")[0]))
    assert len(said) == 1
    monkeypatch.setattr(os, "fdatasync", sync)
    held.put(*record(1, "c"))
    assert await held.settled(record(1, "c")[0]) is None
    assert not held.is_settled(record(1, "a")[0]), "that the disk works again does not bring back what it did not take"
    assert await held.settled(record(1, "a")[0]) is None, "whoever asks has it tried again"
    await held.close()
    assert len((await reloaded(tmp_path))[0]) == 2


async def test_who_waits_for_a_record_that_is_discarded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, _ = store(tmp_path)
    held.put(*record(1))
    waiting = asyncio.create_task(held.settled(record(1)[0]))
    await asyncio.sleep(0)
    held.discard(record(1)[0])
    assert await waiting in (None, f"version 1 of {agent_id('c', 'a').short} was discarded meanwhile")
    await held.close()
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("version", [3, 2])
async def test_what_was_discarded_is_not_settled_by_the_file_that_is_being_deleted(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that is brought a record again which it has just let go says that it has it when it is back on the disk."""
    held, _ = store(tmp_path)
    held.put(*record(3))
    await held.flush()
    deleting, go_on = threading.Event(), threading.Event()
    sync = sync_directory

    def slow(directory: Path) -> None:
        deleting.set()
        assert go_on.wait(10)
        sync(directory)

    monkeypatch.setattr("protocol.aio.store.sync_directory", slow)
    held.discard(record(3)[0])
    assert await asyncio.to_thread(deleting.wait, 10)
    held.put(*record(version))
    assert not held.is_settled(record(version)[0])
    go_on.set()
    assert await held.settled(record(version)[0]) is None
    assert (await reloaded(tmp_path))[0] == [record(version)[0]]
    await held.close()


async def test_what_was_discarded_while_it_was_written_settles_no_older_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, _ = store(tmp_path)
    writing, go_on = threading.Event(), threading.Event()
    sync = sync_directory

    def slow(directory: Path) -> None:
        writing.set()
        assert go_on.wait(10)
        sync(directory)

    monkeypatch.setattr("protocol.aio.store.sync_directory", slow)
    held.put(*record(3))
    assert await asyncio.to_thread(writing.wait, 10)
    held.discard(record(3)[0])
    held.put(*record(2))
    go_on.set()
    assert await held.settled(record(2)[0]) is None
    assert (await reloaded(tmp_path))[0] == [record(2)[0]]
    await held.close()


async def test_a_huge_file_that_is_no_record_is_not_read(tmp_path: Path) -> None:
    """Sparse files of a terabyte: one with nothing in it, one that begins as a record of ours does."""
    held, _ = store(tmp_path)
    held.put(*record(1))
    await held.close()
    (path,) = files_in(tmp_path)
    (tmp_path / "foreign.record").write_bytes(b"")
    for each in (path, tmp_path / "foreign.record"):
        os.truncate(each, 1 << 40)
    found, said = await reloaded(tmp_path)
    assert (found, len(said)) == ([], 2)
    assert any("its record has" in sentence for sentence in said)


async def test_a_copy_under_another_name_is_no_record_of_ours(tmp_path: Path) -> None:
    """It would come back after the record is discarded."""
    held, _ = store(tmp_path)
    held.put(*record(1))
    await held.close()
    (path,) = files_in(tmp_path)
    (tmp_path / "backup.record").write_bytes(path.read_bytes())
    found, said = await reloaded(tmp_path)
    assert found == [record(1)[0]]
    assert said == [f"{tmp_path / 'backup.record'} is passed over: it is a record under another's name"]


async def test_another_record_of_the_same_version_is_not_taken() -> None:
    held, _ = store()
    held.put(*record(1))
    assert "another record that is version 1" in str(held.admit(record(1, size=200)[0]))
    assert held.admit(record(1)[0]) is None
