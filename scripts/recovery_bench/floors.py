"""What no recovery here could beat: the same bytes moved raw, a socket that notices a killed process, a fork of a process with torch."""

from __future__ import annotations

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
ROOT = Path(__file__).resolve().parents[2]


def raw_meanwhile_ms(size: int) -> tuple[float, float]:
    """Moving so many bytes between two processes of ours by a bare BufferedProtocol, now: beside whatever runs on the machine. The first
    time is into new memory; the median is that of the later ones, into the same memory again."""
    same = np.empty(size, np.uint8).data

    async def run(port: int) -> list[float]:
        return [await raw_ms(port, same) for _ in range(1 + RAW_TRIALS)]

    with raw_sender(size) as port:
        found = uvloop.run(run(port))
    return round(median(found[1:]), 3), round(found[0], 3)


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
