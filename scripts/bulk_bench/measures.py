"""What is measured of the bulk path: transfers beside their floor, control traffic meanwhile, and what sparing bytes costs.

Each function runs its own processes and its own loop, so that scripts/bench_recovery.py can call it as well. Figures are medians of
trials taken in turn (floor, ours, floor, ours ...), so that a busy machine is busy for all of them. Ours keeps the memory of large records
and uses it again (protocol/buffers.py), so the floor that it is judged by does, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import blake3
import numpy as np
import uvloop

from protocol.aio.store import RecordStore
from protocol.chunks import CHUNK_BYTES_MIN
from protocol.identifiers import Peer
from protocol.knowledge import open_record
from protocol.wire.messages import Ping
from scripts.bulk_bench.floor import raw_ms, raw_sender
from scripts.bulk_bench.holders import OWNER, Record, Shelf, holders, record_of, shelf, unchecked
from scripts.local_cluster import free_ports

SIZES_MB = ("0.1", "1", "10.396", "100")
MOVED_MB, MOVED_TIMES = 100, 10
PING_EVERY_S = 0.005
HANGS_AFTER_S = 0.02
"""In the middle: 100 MB take longer."""
CHANGED = 0.1
RESTS_S = (0.0, 0.1, 1.0)

Figures = dict[str, Any]


async def timed_ms(work: Callable[[], Awaitable[Any]]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    await work()
    return 1000 * (time.perf_counter() - began)


def medians(trials: dict[str, list[float]]) -> Figures:
    return {name: round(median(found), 3) for name, found in trials.items()}


async def fetch(me: Shelf, peers: list[Peer], record: Record) -> None:
    """The whole record, from these holders."""
    summary, _ = record
    fetched, data = await me.connections.bulk.fetch(me.me, peers, OWNER, summary.tree, summary.version)
    assert (fetched, len(data)) == (summary, summary.record_bytes)


async def push(me: Shelf, peer: Peer, record: Record) -> None:
    """The whole record, to this holder, which forgets it."""
    outcome = await me.connections.bulk.push(me.me, peer, *record, "replica")
    assert outcome.outcome == "stored", outcome


# --- transfers --------------------------------------------------------------------------------------------------------


def transfers(sizes_mb: tuple[str, ...] = SIZES_MB, trials: int = 15) -> dict[str, Figures]:
    """By size: raw_ms (the floor, into one buffer again and again, as ours), raw_new_ms (into a new one each time), bulk_ms (no digests
    checked), bulk_digest_ms, push_ms, and the share of the floor's speed that each of ours has."""
    records = {size: record_of(int(float(size) * 1e6)) for size in sizes_mb}
    largest = max(summary.record_bytes for summary, _ in records.values())

    async def run(port: int, peer: Peer) -> dict[str, Figures]:
        me = await shelf("bench", free_ports(1), [])
        found = {size: await _transfers(me, port, peer, record, trials) for size, record in records.items()}
        await me.connections.close()
        return found

    with raw_sender(largest) as port, holders(1, list(records.values())) as peers:
        return uvloop.run(run(port, peers[0]))


async def _transfers(me: Shelf, port: int, peer: Peer, record: Record, trials: int) -> Figures:
    size = record[0].record_bytes
    same = np.empty(size, np.uint8).data
    times: dict[str, list[float]] = {"raw_new_ms": [], "raw_ms": [], "bulk_ms": [], "bulk_digest_ms": [], "push_ms": []}
    for trial in range(trials + 1):
        found = {"raw_new_ms": await raw_ms(port, np.empty(size, np.uint8).data), "raw_ms": await raw_ms(port, same)}
        with unchecked():
            found["bulk_ms"] = await timed_ms(lambda: fetch(me, [peer], record))
        found["bulk_digest_ms"] = await timed_ms(lambda: fetch(me, [peer], record))
        found["push_ms"] = await timed_ms(lambda: push(me, peer, record))
        if trial:  # the first warms caches up
            for name, value in found.items():
                times[name].append(value)
    figures = medians(times)
    ratios = {f"{name}_ratio": round(figures["raw_ms"] / figures[f"{name}_ms"], 3) for name in ("bulk", "bulk_digest", "push")}
    return {"record_bytes": size, **figures, **ratios}


def after_rest(size_mb: str = "100", trials: int = 9) -> dict[str, Figures]:
    """By how long nothing was moved before each: raw_ms and bulk_digest_ms, as in transfers(). A recovery's is one after a rest."""
    record = record_of(int(float(size_mb) * 1e6))
    same = np.empty(record[0].record_bytes, np.uint8).data

    async def run(port: int, peer: Peer) -> dict[str, Figures]:
        me = await shelf("bench", free_ports(1), [])
        works = {"raw_ms": lambda: raw_ms(port, same), "bulk_digest_ms": lambda: fetch(me, [peer], record)}
        for work in works.values():
            await work()  # into new memory
        found = {f"{rest_s:g} s": {name: await _rested(work, rest_s, trials) for name, work in works.items()} for rest_s in RESTS_S}
        await me.connections.close()
        return found

    with raw_sender(record[0].record_bytes) as port, holders(1, [record]) as peers:
        return uvloop.run(run(port, peers[0]))


async def _rested(work: Callable[[], Awaitable[Any]], rest_s: float, trials: int) -> float:
    times = []
    for _ in range(trials):
        await asyncio.sleep(rest_s)
        times.append(await timed_ms(work))
    return round(median(times), 3)


def several_holders(trials: int = 5) -> Figures:
    """100 MB from one holder, from three, and from three of which the first hangs (SIGSTOP) in the middle; ms."""
    record = record_of(MOVED_MB * 1_000_000)

    async def run(peers: list[Peer], pids: list[int]) -> Figures:
        me = await shelf("bench", free_ports(1), [])
        times: dict[str, list[float]] = {"one_ms": [], "three_ms": [], "three_one_hangs_ms": []}
        for _ in range(trials):
            times["one_ms"].append(await timed_ms(lambda: fetch(me, peers[:1], record)))
            times["three_ms"].append(await timed_ms(lambda: fetch(me, peers, record)))
            asyncio.get_running_loop().call_later(HANGS_AFTER_S, os.kill, pids[0], signal.SIGSTOP)
            times["three_one_hangs_ms"].append(await timed_ms(lambda: fetch(me, peers, record)))
            os.kill(pids[0], signal.SIGCONT)
        await me.connections.close()
        return medians(times)

    pids: list[int] = []
    with holders(3, [record], pids=pids) as peers:
        return uvloop.run(run(peers, pids))


def control_delay() -> Figures:
    """Round trips of small control messages between two processes, in ms, alone and while a gigabyte moves between the same two."""
    record = record_of(MOVED_MB * 1_000_000)

    async def pings(me: Shelf, peer: Peer, until: Callable[[], bool]) -> list[float]:
        found = []
        while not until():
            me.pong.clear()
            began = time.perf_counter()
            me.connections.send(me.me, peer, Ping())
            await me.pong.wait()
            found.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(PING_EVERY_S)
        return found

    async def run(peer: Peer) -> Figures:
        me = await shelf("bench", free_ports(1), [])
        enough = time.monotonic() + 2.0
        quiet = await pings(me, peer, lambda: time.monotonic() > enough)

        async def move() -> None:
            for _ in range(MOVED_TIMES):
                await fetch(me, [peer], record)

        moving = asyncio.create_task(move())
        began = time.perf_counter()
        busy = await pings(me, peer, moving.done)
        took_s = time.perf_counter() - began
        await moving
        await me.connections.close()
        moved_gb = MOVED_TIMES * record[0].record_bytes / 1e9
        return {"moved_gb": round(moved_gb, 3), "gb_per_s": round(moved_gb / took_s, 2), "alone": spread(quiet), "meanwhile": spread(busy)}

    with holders(1, [record]) as peers:
        return uvloop.run(run(peers[0]))


def spread(times_ms: list[float]) -> Figures:
    """Median, 99th percentile and maximum."""
    p99 = quantiles(times_ms, n=100)[98] if len(times_ms) > 1 else times_ms[0]
    return {"count": len(times_ms), "median_ms": round(median(times_ms), 3), "p99_ms": round(p99, 3), "max_ms": round(max(times_ms), 3)}


# --- sparing bytes ----------------------------------------------------------------------------------------------------


def changed_part(size_mb: str = "10.396", trials: int = 15) -> Figures:
    """A version of which a tenth has changed: bytes and ms where the older one is held, beside the whole."""
    older, newer = (record_of(int(float(size_mb) * 1e6), version, CHANGED) for version in (1, 2))

    async def run(peer: Peer) -> Figures:
        me = await shelf("bench", free_ports(1), [])
        times: dict[str, list[float]] = {"whole_ms": [], "changed_ms": []}
        for _ in range(trials):
            me.has = None
            times["whole_ms"].append(await timed_ms(lambda: fetch(me, [peer], newer)))
            me.has = older
            before = me.connections.bulk.moved.received_bytes
            times["changed_ms"].append(await timed_ms(lambda: fetch(me, [peer], newer)))
            moved = me.connections.bulk.moved.received_bytes - before
        await me.connections.close()
        return {"record_bytes": newer[0].record_bytes, "changed_share": CHANGED, "moved_bytes": moved, **medians(times)}

    with holders(1, [newer]) as peers:
        return uvloop.run(run(peers[0]))


def encodings(size_mb: str = "10.396", trials: int = 5) -> dict[str, Figures]:
    """Of weights drawn from a seed: bytes of the record, ms to seal and to open it, and the largest relative error that it brings."""
    size = int(float(size_mb) * 1e6)
    given = open_record(*record_of(size)).tensors["state"]["b_trained"]
    found = {}
    choices: tuple[dict[str, bool], ...] = ({}, {"compress": True}, {"rounded": True}, {"compress": True, "rounded": True})
    for encoding in choices:
        times: dict[str, list[float]] = {"seal_ms": [], "open_ms": []}
        for _ in range(trials):
            began = time.perf_counter()
            record = record_of(size, drawn=given, **encoding)
            sealed = time.perf_counter()
            back = open_record(*record).tensors["state"]["b_trained"]
            times["seal_ms"].append(1000 * (sealed - began))
            times["open_ms"].append(1000 * (time.perf_counter() - sealed))
        error = float(np.max(np.abs(back - given) / np.abs(given)))
        name = " and ".join(encoding) or "plain"
        found[name] = {"record_bytes": record[0].record_bytes, **medians(times), "relative_error_max": float(f"{error:.2g}")}
    return found


# --- what was chosen by measurement -----------------------------------------------------------------------------------


def digests() -> dict[str, Figures]:
    """GB/s of one core over a chunk and over 10 MB. XXH3 is none of FMRec's dependencies: measured where it is installed."""
    candidates: dict[str, Callable[[bytes], object]] = {
        "SHA-256": lambda data: hashlib.sha256(data).digest(),
        "BLAKE2b": lambda data: hashlib.blake2b(data, digest_size=32).digest(),
        "BLAKE3 (chosen)": lambda data: blake3.blake3(data).digest(),
    }
    try:
        from xxhash import xxh3_128_digest
    except ImportError:
        pass
    else:
        candidates["XXH3-128 (not cryptographic)"] = xxh3_128_digest
    inputs = {"chunk_gb_per_s": os.urandom(CHUNK_BYTES_MIN), "10_mb_gb_per_s": os.urandom(10_396_000)}
    return {name: {figure: _gb_per_s(digest, data) for figure, data in inputs.items()} for name, digest in candidates.items()}


def _gb_per_s(digest: Callable[[bytes], object], data: bytes) -> float:
    times = []
    for _ in range(max(5, min(200, 10**8 // len(data)))):
        began = time.perf_counter()
        digest(data)
        times.append(time.perf_counter() - began)
    return round(len(data) / median(times) / 1e9, 2)


def disk(folder: Path | None = None, sizes_mb: tuple[str, ...] = SIZES_MB, trials: int = 9) -> dict[str, Figures]:
    """By size: ms until a record is settled (written, synced, renamed, directory synced) in this folder, and of the write alone."""

    async def run(where: Path) -> dict[str, Figures]:
        found = {}
        for size in sizes_mb:
            summary, data = record_of(int(float(size) * 1e6))
            store = RecordStore(where / size, 1 << 30, print)
            await store.load()
            times: dict[str, list[float]] = {"write_ms": [], "settled_ms": []}
            for version in range(1, trials + 1):
                began = time.perf_counter()
                await asyncio.to_thread((where / f"{size}.plain").write_bytes, data)
                times["write_ms"].append(1000 * (time.perf_counter() - began))
                began = time.perf_counter()
                store.put(replace(summary, version=version), data)
                failed = await store.settled(replace(summary, version=version))
                assert failed is None, failed
                times["settled_ms"].append(1000 * (time.perf_counter() - began))
            await store.close()
            found[size] = medians(times)
        return found

    with tempfile.TemporaryDirectory(prefix="fmrec-bench-", dir=folder) as where:
        return uvloop.run(run(Path(where)))
