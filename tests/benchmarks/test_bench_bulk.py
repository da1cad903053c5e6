"""The benchmark of the bulk path, run small: every part gives its figures. How good they are is for a quiet machine to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import uvloop

from scripts.bulk_bench import floor, measures

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_bulk.py"


def test_transfers_are_measured_beside_their_floor() -> None:
    """As scripts/bench_recovery.py calls it."""
    found = measures.transfers(("0.1",), trials=2)["0.1"]
    assert 100_000 < found["record_bytes"] < 110_000
    assert found["raw_new_ms"] > 0
    for name in ("bulk", "bulk_digest", "push"):
        assert found[f"{name}_ratio"] == round(found["raw_ms"] / found[f"{name}_ms"], 3)


def test_the_floor_that_judges_is_received_into_the_same_memory_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    into = []

    async def raw_ms(port: int, buffer: memoryview) -> float:
        into.append(np.frombuffer(buffer, np.uint8))  # keeps the memory from being given again
        return 1.0 if len(into) % 2 else 3.0

    monkeypatch.setattr(measures, "raw_ms", raw_ms)
    found = measures.transfers(("0.1",), trials=2)["0.1"]
    new, same = ({buffer.ctypes.data for buffer in into[first::2]} for first in (0, 1))
    assert (len(new), len(same)) == (3, 1)
    assert (found["raw_new_ms"], found["raw_ms"]) == (1.0, 3.0)


def test_what_a_rest_costs_is_told_for_the_floor_and_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    rested = []
    sleep = measures.asyncio.sleep

    async def noted(seconds: float) -> None:
        rested.append(seconds)
        await sleep(0)

    monkeypatch.setattr(measures.asyncio, "sleep", noted)
    found = measures.after_rest("0.1", trials=2)
    assert list(found) == ["0 s", "0.1 s", "1 s"]
    assert all(times["raw_ms"] > 0 and times["bulk_digest_ms"] > 0 for times in found.values())
    assert [rest for rest in rested if rest in measures.RESTS_S] == [rest for rest in measures.RESTS_S for _ in range(4)]


def test_the_floor_fills_the_memory_that_it_is_given() -> None:
    buffer = np.zeros(100_000, np.uint8)
    with floor.raw_sender(len(buffer)) as port:
        assert uvloop.run(floor.raw_ms(port, buffer.data)) > 0
        assert buffer.tobytes() == floor.DATA


def test_a_changed_tenth_moves_a_tenth() -> None:
    found = measures.changed_part("1", trials=1)
    assert found["moved_bytes"] < 0.3 * found["record_bytes"]


def test_the_cost_of_each_encoding_is_told() -> None:
    found = measures.encodings("0.1", trials=1)
    assert found["plain"]["relative_error_max"] == found["compress"]["relative_error_max"] == 0
    assert 0 < found["rounded"]["relative_error_max"] <= 2**-8
    assert found["compress and rounded"]["record_bytes"] < found["rounded"]["record_bytes"] < found["plain"]["record_bytes"] * 0.6


def test_one_object_on_standard_output(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--json", "--only", "digests", "--only", "disk", "--folder", str(tmp_path), "--trials", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert report["digests"]["BLAKE3 (chosen)"]["chunk_gb_per_s"] > 0
    assert report["disk"]["10.396"]["settled_ms"] > 0
    assert not list(tmp_path.iterdir())
