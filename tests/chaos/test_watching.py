"""What is seen of a cluster's processes."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.chaos_run import watching
from scripts.chaos_run.watching import Watch


def cluster_of(**pids: int) -> Any:
    return SimpleNamespace(managers={}, addresses={}, pids=lambda: pids)


def test_what_was_said_before_the_last_fault_is_forgotten() -> None:
    watch = Watch(cluster_of())
    watch.status, watch.agents = {"manager-a": {"version": 3}}, {"host-1-0": {"in_ring": True}}
    watch.forget()
    assert watch.root() is None
    assert watch.agents == {"host-1-0": None}


def test_a_process_is_sampled() -> None:
    watch = Watch(cluster_of(me=os.getpid()))
    watch.sample()
    (sample,) = watch.samples
    assert (sample.name, sample.pid) == ("me", os.getpid())
    assert sample.pss_mb > 1


def test_one_that_dies_while_it_is_looked_at_is_none_of_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size would be 0 MB, and it would have shrunk."""
    monkeypatch.setattr(watching, "pss_mb", lambda *_: 0.0)
    watch = Watch(cluster_of(me=os.getpid()))
    watch.sample()
    assert watch.samples == []
