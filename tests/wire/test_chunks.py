"""A record's front names it, each chunk is checked alone, and what did not change is the same chunk (P2, P7)."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from protocol.chunks import (
    CHUNK_BYTES_MIN,
    CHUNKS_MAX,
    CHUNKS_OF_SECTION_MAX,
    HEAD_BYTES,
    SECTIONS_MAX,
    bind,
    content_of,
    digest_of,
    front_bytes,
    front_of,
    read_front,
    verify,
)
from protocol.errors import LocalProtocolError, RecordInvalid
from protocol.identifiers import agent_id, tree_id
from protocol.knowledge import Knowledge, seal
from protocol.wire.values import RecordSummary

RANDOM = np.random.default_rng(1)


def summary_of(digest: bytes, size: int) -> RecordSummary:
    return RecordSummary(agent_id("c", "a"), tree_id("t", "u"), 1, 1, 0, 0, False, size, digest)


def record(*sections: bytes, compress: bool = False) -> tuple[RecordSummary, bytes]:
    digest, data = bind([[section] for section in sections], compress=compress)
    return summary_of(digest, len(data)), bytes(data)


def noise(size: int) -> bytes:
    return RANDOM.bytes(size)


def trained(iteration: int, *, complete: bool, changed: float) -> Knowledge:
    """A model of 4 MB of which a share is trained; a finished job's record has a contribution as well."""
    random = np.random.default_rng(7)
    frozen = random.normal(size=1_000_000).astype("f4")
    parts = {"frozen": frozen[: int(1e6 * (1 - changed))], "head": frozen[int(1e6 * (1 - changed)) :] + np.float32(iteration)}
    tensors = {"state": parts} | ({"contribution": {"head": parts["head"]}} if complete else {})
    owner, tree = agent_id("c", "a"), tree_id("t", "u")
    return Knowledge(owner, tree, iteration, 1, "train", iteration // 100, iteration, complete, metrics={"a": 1.0} if complete else {},
                     state=b"s" * (iteration % 7), tensors=tensors)  # fmt: skip


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES_MIN, CHUNK_BYTES_MIN + 1, 40 * CHUNK_BYTES_MIN + 7])
def test_what_was_bound_is_read(size: int, compress: bool) -> None:
    section = noise(size)
    summary, data = record(b"first", section, compress=compress)
    assert bytes(content_of(summary, data, 1 << 30)) == b"first" + section
    front = front_of(summary, data)
    assert front.bounds[-1] == len(data)
    assert len(front.digests) == 1 + -(-size // CHUNK_BYTES_MIN)


def test_a_large_section_has_longer_chunks_and_never_too_many() -> None:
    size = CHUNK_BYTES_MIN * CHUNKS_OF_SECTION_MAX
    assert len(front_of(*record(bytes(size))).digests) == CHUNKS_OF_SECTION_MAX
    assert len(front_of(*record(bytes(size + 1))).digests) == CHUNKS_OF_SECTION_MAX // 2 + 1
    with pytest.raises(LocalProtocolError, match=f"at most {SECTIONS_MAX} sections"):
        bind([[b"x"]] * (SECTIONS_MAX + 1))


@pytest.mark.parametrize("compress", [False, True])
def test_of_a_model_that_is_frozen_in_part_only_the_changed_part_has_new_chunks(compress: bool) -> None:
    """Whatever changes in length: the header, the learner's state, and a contribution that comes and goes."""
    fronts = [
        front_of(*seal(trained(iteration, complete=complete, changed=0.1), compress=compress))
        for iteration, complete in ((127, False), (128, False), (70_000, True), (70_001, False))
    ]
    for before, after in pairwise(fronts):
        sizes = np.diff(after.bounds)
        new = sum(size for size, digest in zip(sizes, after.digests, strict=True) if digest not in before.digests)
        trained_bytes = 400_000 * (2 if after is fronts[2] else 1)
        assert new <= trained_bytes + 3 * CHUNK_BYTES_MIN


def test_any_byte_that_changes_is_noticed() -> None:
    summary, data = record(noise(300), noise(3 * CHUNK_BYTES_MIN))
    for at in [*range(200), *range(200, len(data), 1009)]:
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(RecordInvalid, match="does not have its digest"):
            verify(summary, changed)


def test_who_makes_a_front_of_his_own_is_bounded() -> None:
    """P7: he also says its digest, so what it announces must be judged."""

    def told(front: bytes, size: int) -> str:
        with pytest.raises(RecordInvalid) as caught:
            read_front(summary_of(digest_of(front), size), front)
        return str(caught.value)

    def head(count: int, magic: bytes = b"FMRK", version: int = 2, encoding: int = 0) -> bytes:
        return struct.pack(">4sHBBIQ", magic, version, encoding, 0, count, 10)

    entry = struct.pack(">I32s", 10, bytes(32))
    assert len(head(0)) == HEAD_BYTES
    assert "is none: it is not in format 2" in told(head(0, magic=b"FMRX"), 20)
    assert "is none: it is not in format 2" in told(head(0, version=1), 20)
    assert "is none: it is not in format 2" in told(head(0, encoding=7), 20)
    assert f"at most {CHUNKS_MAX} may be" in told(head(2**32 - 1), 20)
    assert "has a front of 56 bytes that says 92" in told(head(2) + entry, 66)
    assert "has 66 bytes, not the 67 that were announced" in told(head(1) + entry, 67)
    assert "has 0 bytes of content where 10 were announced" in told(head(0), 20), "complete before a byte has come"
    assert "has 4 bytes of content where 10 were announced" in told(head(1) + struct.pack(">I32s", 4, bytes(32)), 60)
    assert "has an empty chunk" in told(head(1) + struct.pack(">I32s", 0, bytes(32)), 56)
    with pytest.raises(RecordInvalid, match="too short"):
        front_bytes(b"FMRK")


def test_nothing_is_decompressed_beyond_what_was_announced() -> None:
    """P7: a kilobyte can become a gigabyte."""
    summary, data = record(bytes(1 << 20), compress=True)
    assert len(data) < 2000
    with pytest.raises(RecordInvalid, match="1048576 bytes of content where at most 1000 may be"):
        content_of(summary, data, 1000)
    front = bytearray(data[: front_bytes(data)])
    struct.pack_into(">Q", front, 12, 70_000)
    lie = replace(summary, digest=digest_of(front))
    with pytest.raises(RecordInvalid, match="more content than was announced"):
        content_of(lie, bytes(front) + data[len(front) :], 1 << 30)


def test_what_is_no_zstd_is_said() -> None:
    chunk = noise(100)
    front = struct.pack(">4sHBBIQ", b"FMRK", 2, 1, 0, 1, 10) + struct.pack(">I32s", 100, digest_of(chunk))
    with pytest.raises(RecordInvalid, match="cannot be decompressed"):
        content_of(summary_of(digest_of(front), len(front) + 100), front + chunk, 1 << 30)
