"""What no recovery here could beat: the same bytes moved raw, a socket that notices a killed process, a fork of a process with torch."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop

from scripts.bulk_bench.floor import raw_ms, raw_sender

TRIALS = 50
RAW_TRIALS = 9
REST_S = 1.0
ROOT = Path(__file__).resolve().parents[2]


def raw_meanwhile(size: int) -> dict[str, float]:
    """Moving so many bytes between two processes of ours by a bare BufferedProtocol, now: beside whatever runs on the machine.

    raw_first_ms: into new memory; the others are medians, into the same memory again. raw_in_a_row_ms: one transfer right after the other.
    raw_meanwhile_ms: one after a rest of REST_S, as a recovery's is; scripts/bench_bulk.py --only rest shows what a rest alone does.
    """
    same = np.empty(size, np.uint8).data

    async def run(port: int) -> tuple[float, list[float], list[float]]:
        first = await raw_ms(port, same)
        in_a_row = [await raw_ms(port, same) for _ in range(RAW_TRIALS)]
        rested = []
        for _ in range(RAW_TRIALS):
            await asyncio.sleep(REST_S)
            rested.append(await raw_ms(port, same))
        return first, in_a_row, rested

    with raw_sender(size) as port:
        first, in_a_row, rested = uvloop.run(run(port))
    found = {"raw_first_ms": first, "raw_in_a_row_ms": median(in_a_row), "raw_meanwhile_ms": median(rested)}
    return {name: round(value, 3) for name, value in found.items()}


def process_floor() -> dict[str, Any]:
    """fork_ms: a fork and its exit; notice_ms: from SIGKILL to the end of a plain socket. In a process that has torch imported."""
    command = [sys.executable, "-c", "from scripts.recovery_bench import floors; floors.measure()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return dict(json.loads(done.stdout))


def measure() -> None:
    """Print process_floor()'s figures: its process runs this."""
    import torch

    torch.set_num_threads(1)
    forks, notices = [], []
    for _ in range(TRIALS):
        began = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        forks.append(1000 * (time.perf_counter() - began))
        notices.append(_notice_ms())
    print(json.dumps({"fork_ms": round(median(forks), 3), "notice_ms": round(median(notices), 3)}))


def _notice_ms() -> float:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        theirs.send(b"!")
        signal.pause()
    theirs.close()
    ours.recv(1)
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    ours.recv(1)
    took_ms = 1000 * (time.perf_counter() - began)
    os.waitpid(pid, 0)
    ours.close()
    return took_ms
